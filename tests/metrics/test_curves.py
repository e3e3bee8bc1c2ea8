from selfdistill.metrics.curves import loss_curves

REST = {"lr": 1.0e-4, "grad_norm": 1.0}


def test_losses_are_the_total_and_the_terms_named_without_the_only_turn():
    records = [
        {"nimg": 8, "loss": 3.0, "network/velocity": 2.0, "network/gan": 1.0, **REST},
        {"nimg": 16, "loss": 2.0, "network/velocity": 1.5, "network/gan": 0.5, **REST},
    ]
    assert loss_curves(records) == {
        "loss": ([8, 16], [3.0, 2.0]),
        "velocity": ([8, 16], [2.0, 1.5]),
        "gan": ([8, 16], [1.0, 0.5]),
    }


def test_terms_of_several_turns_keep_their_turn():
    records = [{"nimg": 8, "loss": 3.0, "fake_score/denoise": 2.0, "generator/sid": 1.0, **REST}]
    assert list(loss_curves(records)) == ["loss", "fake_score/denoise", "generator/sid"]


def test_a_term_that_begins_later_has_fewer_points():
    records = [
        {"nimg": 8, "loss": 1.0, "network/a": 1.0},
        {"nimg": 16, "loss": 3.0, "network/a": 1.0, "network/b": 2.0},
    ]
    assert loss_curves(records)["b"] == ([16], [2.0])


def test_an_empty_log_has_no_curves():
    assert loss_curves([]) == {}
