"""All rows of all environments, checked as a whole."""

import functools
import json
import re
from contextlib import nullcontext

import pytest
import torch

from selfdistill.config import ProjectConfig
from selfdistill.config_loader import ProjectConfigLoader
from selfdistill.methods.registry import build_network
from selfdistill.row_config import RowConfig
from selfdistill.settings import CONFIG_LOADER_ARGS

ENVIRONMENTS = ("base", "tiny")


@functools.cache
def read(project, env):
    latest = ProjectConfigLoader.latest
    loader = ProjectConfigLoader(str(project / "conf"), env=env, **CONFIG_LOADER_ARGS)
    ProjectConfigLoader.latest = latest
    return json.dumps(loader["parameters"])


def parameters(project, env):
    return json.loads(read(project, env))  # nothing is shared that an anchor shared


@pytest.fixture
def base(project):
    return parameters(project, "base")


def accepted_unless(message):
    """Expect a refusal whose text matches; None: there is none."""
    return nullcontext() if message is None else pytest.raises(ValueError, match=message)


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_every_row_of_every_environment_is_valid(project, env):
    config = ProjectConfig.from_parameters(parameters(project, env))
    lines = [name for name, row in config.rows.items() if row.paper_name == "dsd"]
    assert lines == ["dsd_s", "dsd_m", "dsd_b"]
    assert sum(row.paper_name == "ssd" for row in config.rows.values()) > 50


def test_full_size_rows_have_the_papers_parameter_count(project):
    config = ProjectConfig.from_parameters(parameters(project, "base"))
    for name, row in config.rows.items():
        if row.paper is None:
            continue
        with torch.device("meta"):
            network = build_network(row.network)
        # What predicts features serves training alone, and no paper counts it.
        count = sum(
            parameter.numel()
            for parameter_name, parameter in network.named_parameters()
            if not parameter_name.startswith(("representation_out", "projectors"))
        )
        assert count == pytest.approx(row.paper.params, rel=0.01), name


STUDIES = ("collapse_study", "collapse_study_caltech10", "collapse_study_cifar10")
CASES = {
    "naive": ("live", "velocity", False),
    "decoupled": ("detached", "velocity", False),
    "transformed": ("detached", "z0", False),
    "averaged": ("average", "z0", False),
    "augmented": ("average", "z0", True),
}


@pytest.mark.parametrize("env", ENVIRONMENTS)
@pytest.mark.parametrize("study", STUDIES)
def test_the_five_cases_of_a_study_differ_in_what_the_paper_says_and_nothing_else(
    project, env, study
):
    config = ProjectConfig.from_parameters(parameters(project, env))
    cases = {name: row for name, row in config.rows.items() if row.study == study}
    assert [name.rsplit("_", 1)[1] for name in cases] == list(CASES)
    rest = set()
    for row, (target, prediction, masked) in zip(cases.values(), CASES.values(), strict=True):
        method = row.method.root
        assert (method.target, method.prediction) == (target, prediction)
        assert (method.augmentation is not None) == masked
        if masked:
            assert method.augmentation.probability == 1
            assert method.augmentation.mask_ratio == (0.75, 0.75)
        same = {"target": None, "prediction": None, "augmentation": None}
        others = row.model_dump(mode="json") | {"method": method.model_dump(mode="json") | same}
        rest.add(json.dumps(others, sort_keys=True))
    assert len(rest) == 1


# By the block of dsd.yml: what the dossier lists as lost from the paper's text or never in it.
UNSTATED = {
    "_paper": ("reference",),
    "_network": ("patch_size", "latent_dim", "normalize_latent"),
    "_method": (
        "velocity_target", "distillation", "velocity", "reconstruction", "perceptual", "alignment",
        "representation", "classification", "probability", "mask_ratio", "class_dropout",
        "ema_decay",
    ),
    "_train": (
        "batch_size", "flip", "warmup_nimg", "schedule", "clip_norm", "precision", "lr",
        "weight_decay", "momentum", "num_newton_schulz", "betas", "eps",
    ),
    "_plain": ("timestep_shift", "num_images", "repeats"),
    "_guided": ("guidance", "guidance_interval"),
    "dsd_s": ("network",),
}  # fmt: skip


@pytest.mark.parametrize("block", UNSTATED)
def test_what_the_paper_does_not_state_is_marked_in_the_yaml(project, block):
    text = (project / "conf/base/parameters/dsd.yml").read_text(encoding="utf-8")
    found = re.search(rf"^{block}:.*\n((?: .*\n|\n)*)", text, re.MULTILINE)
    assert found is not None
    for key in UNSTATED[block]:
        (line,) = re.findall(rf"^ +{key}:.*$", found[1], re.MULTILINE)
        assert "not stated" in line, line


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_the_points_of_a_sweep_differ_and_are_what_their_names_say(project, env):
    config = ProjectConfig.from_parameters(parameters(project, env))
    for row in (row for row in config.rows.values() if row.sweep):
        points = {name: (p.guidance, *p.guidance_interval) for name, p in row.sweep.points.items()}
        assert len(set(points.values())) == len(points)
        for name, (guidance, start, end) in points.items():
            digits = f"from_{start:.1f}_by_{guidance:g}".replace(".", "_")
            assert (name, end) == (digits, 1.0)


def test_tiny_has_the_rows_of_base_and_changes_no_papers_figure(project):
    base, tiny = (ProjectConfig.from_parameters(parameters(project, env)) for env in ENVIRONMENTS)
    assert base.rows.keys() == tiny.rows.keys()
    for name, row in base.rows.items():
        assert tiny.rows[name].paper == row.paper
        assert tiny.rows[name].study == row.study
        assert tiny.rows[name].samplings.keys() == row.samplings.keys()
        if row.sweep:
            assert tiny.rows[name].sweep.points.keys() == row.sweep.points.keys()


def test_base_is_50_epochs_of_imagenet_and_249_updates(project):
    row = ProjectConfig.from_parameters(parameters(project, "base")).rows["dsd_b"]
    assert row.train.total_nimg == 50 * 1_281_167
    assert all(sampling.num_steps == 249 for sampling in row.samplings.values())
    assert all(sampling.num_images == 50_000 for sampling in row.samplings.values())


MISTAKES = [
    (("dsd_b", "method", "weights", "velocity"), 0.0, "dsd_b: its objective trains no velocity"),
    (("dsd_b", "study"), "collapse_study", "dsd_b: a row has either `paper`"),
    (("dsd_b", "samplings"), {}, "dsd_b: samplings: a line of a table needs one or more"),
    (("dsd_b", "sweep", "metric"), "fdi", "dsd_b.sweep: metric: no metric 'fdi'"),
    (("dsd_b", "sweep", "metric"), "psnr", "dsd_b.sweep.metric 'psnr' is not among"),
    (
        ("dsd_b", "sweep", "points", "from_0_1_by_2", "num_images"),
        5_000,
        "dsd_b.sweep: points: numbers of images and repeats differ",
    ),
    (("dsd_b", "reconstruction", "data"), "coco", "reconstruction.data: no dataset 'coco'"),
    (("dsd_b", "reconstruction", "data"), "imagenet_512", "has images of 512 pixels"),
    (("dsd_b", "method", "target"), "live", "dsd_b.method: target 'live' is the online latent"),
    (("dsd_b", "method", "weights", "gan"), 0.1, "dsd_b.method.weights.gan: unknown key"),
    (("dsd_b", "train", "learning_rate"), 1.0, "dsd_b.train.learning_rate: unknown key"),
    (("dsd_b", "train", "seed"), "many", "dsd_b.train.seed: .*'many'"),
    (("dsd_b", "method", "alpha"), 1.0, "dsd_b.method.alpha: unknown key"),
    (("dsd_b", "data"), "imagenet_128", "dsd_b.data: no dataset 'imagenet_128'"),
    (("dsd_b", "network", "num_classes"), 10, "dsd_b.network.num_classes is 10"),
    (("dsd_b", "network", "teacher_dim"), 1024, "dsd_b.network.teacher_dim is 1024"),
    (("imagenet_256", "teacher"), "clip", "imagenet_256.teacher: no teacher 'clip'"),
    (("imagenet_256", "preprocess", "crop"), "random", "imagenet_256.preprocess.crop: .*'random'"),
    (
        ("dsd_b", "paper", "samplings", "giuded"),
        {"fid": 1.0},
        "dsd_b: paper.samplings: the row has no sampling 'giuded'; it has plain, unshifted, guided",
    ),
    (("dsd_b", "paper", "samplings", "plain", "fdi"), 1.0, "dsd_b.paper.samplings.plain.fdi"),
    (
        ("dsd_b", "network", "patch_size"),
        32,
        "dsd_b.network has 8 x 8 tokens, but teacher dinov3_vitb16 16 x 16",
    ),
    (
        ("teachers", "dinov3_vitb16", "cache", "mirrored"),
        False,
        "dsd_s.train.flip shows mirrored images, but features of them are not kept",
    ),
    (("imagenet_256", "latents", "sd", "vae"), "sd_vea", "imagenet_256.latents.sd.vae: no VAE"),
    (("distributed", "host"), 1, "hosts are 0 to 0"),
    (("distributed", "num_ranks"), 0, "distributed.num_ranks"),
    (("dsd_x",), {"data": "imagenet_256"}, "dsd_x.network: Field required"),
]


@pytest.mark.parametrize(("path", "value", "message"), MISTAKES)
def test_a_mistake_is_named_by_its_path_in_the_yaml(base, path, value, message):
    place = base
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ValueError, match=message) as error:
        ProjectConfig.from_parameters(base)
    assert "https://" not in str(error.value)


def test_missing_settings_are_named(base):
    del base["teachers"]
    with pytest.raises(ValueError, match="teachers"):
        ProjectConfig.from_parameters(base)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("issd_dsd_b_10.start.row", "dsd_x", "issd_dsd_b_10.start.row: no row 'dsd_x'"),
        ("issd_dit_s_256_n10.start", None, "issd_dit_s_256_n10.network: Field required"),
        ("ssd_of_nothing", {}, "method ssd tunes a network: give a start"),
        ("issd_dsd_b_10.start.weights", "dit", "give either row, or weights"),
        ("issd_dsd_b_10.start.row", "issd_dsd_b_4", None),
        (
            "issd_dsd_b_10.start.row",
            "issd_dsd_b_10",
            "leads back: sida_dsd_b -> issd_dsd_b_10 -> issd",
        ),
        ("issd_dsd_b_20.start.row", "dsd_s", None),
        (
            "issd_dit_xl_256_n10.latents",
            None,
            "issd_dit_xl_256_n10.latents differs from that of dit",
        ),
        ("issd_dsd_b_10.network", {"name": "none"}, "issd_dsd_b_10.network"),
        ("issd_dsd_b_10.latents", "sd", "has latents of its own"),
        ("dit_xl_256.start", None, "train is null: give a start"),
        ("dit_b_256.latents", "edm2", "dit_b_256.latents: imagenet_256 has no set 'edm2'"),
        ("dit_b_256.latents", None, "dit_b_256.network.latent_size is 32, but dataset"),
        (
            "dit_xl_256.network.latent_size",
            64,
            "is 64, but dataset imagenet_256 has 32",
        ),
        ("dit_xl_256.samplings.n10.solver", "euler", "samplings.n10.solver 'euler' is not of net"),
        ("dsd_b.samplings.plain.solver", "ddim", "samplings.plain.solver 'ddim' is not of network"),
        ("dsd_b.samplings.plain.guided_channels", 3, "DSD's latents are guided whole"),
        ("dsd_b.samplings.plain.times", [9], "num_steps is 249"),
        ("dit_xl_256.samplings.n10.timestep_shift", 0.3, "timestep_shift means nothing for net"),
        ("ssd_dit_xl_256_n10.method.grid.num_steps", 20, "samplings.n10.num_steps is 10, but the"),
        ("pd_dit_xl_256_n10.samplings.n10.halvings", 0, "halvings is 0, but the network is tuned"),
        (
            "ssd_dsd_b_10.samplings.n10.timestep_shift",
            1.0,
            "timestep_shift is 1.0, but the network",
        ),
        ("eq10_repa_sit_xl_256_n10.method.target.weight", "midpoint", "midpoint is of discr"),
        ("ssd_dit_xl_256_n10.method.only_step", 2, "method.only_step is of a study"),
        ("continued_dit_xl_256.method.time_distribution", "logit_normal", "are drawn evenly"),
        ("imagenet_256.latents.sd.mirrored", False, "latents of them are not kept"),
        ("issd_sd15_n10.samplings.n10.data", "coco", "issd_sd15_n10.samplings: no dataset 'coco'"),
        (
            "dit_s_256.samplings.n10.data",
            "cifar10_32",
            "cifar10_32 has resolution 32, but imagenet",
        ),
        (
            "dit_s_256.samplings.n10.data",
            "caltech10_256",
            "caltech10_256 has num_classes 10, but i",
        ),
        ("issd_sd15_n10.method.target.site", "gated", "a U-Net's branches have no gates"),
        ("issd_sd15_n10.method.include_variance", True, "network text_unet predicts no variance"),
        ("issd_sd15_n10.train.compile", True, "train.compile: network text_unet is mixed by hooks"),
        ("issd_sd15_n10.train.recompute_activations", True, "train.recompute_activations: networ"),
        (
            "sd15.samplings.n10.solver",
            "ddpm",
            "samplings.n10.solver ddpm: network text_unet predic",
        ),
        ("sd15.paper.uncertain", ["n5"], "paper.samplings: the row has no sampling 'n5'"),
        (
            "dsd_b.paper.deviations",
            {"plain": {"recall": 1}},
            "deviations.plain: there is no figure",
        ),
        ("dsd_b.start", {"weights": "a", "teacher": "dsd_s"}, "method dsd learns from no other"),
        ("sid2a_ffhq_alpha_10.start.teacher", None, "which teaches nobody: name the row that it"),
        ("sid2a_ffhq_alpha_10.start.teacher", "sida_ffhq", "which teaches nobody"),
        ("issd_dsd_b_20.start.row", "sida_dsd_b", "this row cannot start as one"),
        (
            "sida_ffhq.train.optimizers",
            {"x": {"name": "adamw", "lr": 1, "weight_decay": 0, "betas": [0, 0], "eps": 1}},
            "optimizers.x: there is no such turn",
        ),
        ("sid2a_ffhq_alpha_10.start.teacher", "edm_x", "start.teacher: no other row 'edm_x'"),
        ("sid2a_ffhq_alpha_10.start.teacher", "dit_s_256", "which it learns from"),
        ("edm2_s_guided.samplings.n32.guide.network.latent_size", 32, "of other latents or noise"),
        (
            "edm2_s_guided.samplings.n32.guide",
            {"row": "nobody"},
            "guide.row: no other row 'nobody'",
        ),
        (
            "tradeoffs.dsd_b_to_one_step.samplings",
            ["dsd_b.plain", "dsd_b.x"],
            "no sampling 'dsd_b.x'",
        ),
        (
            "tradeoffs.dsd_b_to_one_step.samplings",
            ["dsd_b.plain", "edm2_s_guided.n32"],
            "not timed",
        ),
        ("figures.few_steps_dit.metric", "fd_tiny", "is not among evaluation.metrics"),
        ("dit_s_256.evaluation", "edm3", "dit_s_256.evaluation: no evaluation 'edm3'; evaluation"),
        ("imagenet_512.references.edm3", "x", "imagenet_512.references: no evaluation 'edm3'"),
        ("figures.few_steps_dit.lines.SSD", ["a.b"], "few_steps_dit: there is no sampling 'a.b'"),
    ],
)
def test_starts_latents_and_figures_that_cannot_be_are_refused(project, path, value, message):
    values = parameters(project, "base")
    if path == "ssd_of_nothing":
        kept = {key: one for key, one in values["ssd_dit_xl_256_n10"].items() if key != "start"}
        value = {**kept, "network": values["dit_s_256"]["network"]}
    *way, last = path.split(".")
    place = values
    for key in way:
        place = place[key]
    place[last] = value
    with accepted_unless(message and re.escape(message)):
        ProjectConfig.from_parameters(values)


def test_the_few_steps_of_dsd_are_of_its_own_network(project):
    """A row that starts from another one has that one's network."""
    for env in ("base", "tiny"):
        rows = ProjectConfig.from_parameters(parameters(project, env)).rows
        assert rows["few_steps_dsd_b"].network == rows["dsd_b"].network


class TestNoiseLevels:
    """Rows of EDM's networks: their own solver, levels and methods, and nobody else's."""

    SID = {
        "name": "sid", "alpha": 1.0, "start_level": 2.5, "largest_share": 0.8, "log_mean": -1.2,
        "log_deviation": 1.2, "generator_weight": 100, "fake_weight": 1, "half_life_nimg": 500_000,
        "ramp_up": 0.05, "normalize_weights": False, "adversary": None,
    }  # fmt: skip
    EDM = {
        "name": "ddpmpp", "latent_size": 32, "latent_channels": 3, "width": 128,
        "multipliers": [2, 2, 2], "num_blocks": 4, "attention_sides": [16], "num_classes": 10,
        "conditional": True, "dropout": 0.13, "augment_dim": 9,
    }  # fmt: skip
    DIFFUSION = {
        "name": "diffusion", "class_dropout": 0.0, "ema_decay": 0.999,
        "levels": {"mean": -1.2, "deviation": 1.2},
    }  # fmt: skip
    UNDERSTOOD = {**DIFFUSION, "class_dropout": 0.1}

    @pytest.fixture
    def row(self, project):
        values = parameters(project, "base")
        sampling = {
            "solver": "edm", "num_steps": 1, "levels": [2.5], "guidance": 1, "seed": 0,
            "guidance_interval": [0, 1], "num_images": 50_000, "repeats": 10, "batch_size": 64,
            "shard_size": 512,
        }  # fmt: skip
        values["one_step"] = {
            "study": "s", "data": "cifar10_32", "start": {"weights": "edm"}, "network": self.EDM,
            "method": self.SID, "train": {**values["dit_s_256"]["train"], "compile": False},
            "samplings": {"one": sampling},
        }  # fmt: skip
        return values

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({}, None),
            ({"method": {"normalize_weights": True}}, "normalize_weights is of EDM2's networks"),
            ({"samplings": {"one": {"levels": [3.0]}}}, r"one\.levels must be \[2\.5\], method"),
            ({"samplings": {"one": {"solver": "heun"}}}, "'heun' is not of network ddpmpp: take"),
            ({"samplings": {"one": {"times": [3]}}}, "times means nothing for network ddpmpp"),
            ({"method": DIFFUSION}, None),
            (
                {"method": {**DIFFUSION, "log_variance": True}},
                r"method\.log_variance is of EDM2's networks: set it false",
            ),
            (
                {"method": DIFFUSION, "samplings": {"one": {"guidance": 1.5}}},
                r"samplings\.one: network ddpmpp has not learned to do without classes",
            ),
            ({"method": UNDERSTOOD, "samplings": {"one": {"guidance": 1.5}}}, None),
            (
                {
                    "method": UNDERSTOOD,
                    "samplings": {"one": {"guidance": 1.5}},
                    "network": {"conditional": False},
                },
                r"samplings\.one\.guidance: network ddpmpp knows no classes; set it 1",
            ),
            ({"method": {**DIFFUSION, "levels": None}}, r"method\.levels has to say noise levels"),
            ({"method": {**DIFFUSION, "augment": {"probability": 0.12}}}, None),
            ({"method": {"augment": {"probability": 0.12}}}, None),
            ({"method": {"augment": {"probability": 12}}}, "less than or equal to 1"),
            (
                {"method": {"augment": {"probability": 0.12}}, "network": {"augment_dim": 0}},
                "method.augment: network ddpmpp is not told of it.*with augment_dim 9",
            ),
        ],
    )
    def test_a_row_is_of_one_process(self, row, changes, message):
        for key, value in changes.items():
            if key == "samplings":
                row["one_step"][key]["one"] = {**row["one_step"][key]["one"], **value["one"]}
            else:
                whole = value if "name" in value else {**row["one_step"][key], **value}
                row["one_step"][key] = whole
        with accepted_unless(message):
            ProjectConfig.from_parameters(row)

    def test_what_is_of_noise_levels_is_refused_elsewhere(self, project):
        for path, value, message in (
            ("samplings.n10.levels", [1.0] * 10, "levels means nothing for network dit"),
            ("method.levels", {"mean": 0, "deviation": 1}, "method.levels means nothing where"),
            ("method", self.SID, r"samplings\.n250\.solver 'ddim' is not of network dit as method"),
            ("method.augment", {"probability": 0.1}, "method.augment .* nothing for latents"),
        ):
            values = parameters(project, "base")
            *way, last = path.split(".")
            place = values["dit_s_256"]
            for key in way:
                place = place[key]
            place[last] = value
            with pytest.raises(ValueError, match=message):
                ProjectConfig.from_parameters(values)

    TAP = {"kind": "channels", "block": 6}
    ADVERSARY = {
        "generator_weight": 0.01, "fake_weight": 1, "rests_nimg": 0, "joins_nimg": 0,
        "largest_gradient": None,
    }  # fmt: skip

    @pytest.mark.parametrize(
        ("row_name", "tap", "changes", "message"),
        [
            ("dit_s_256", TAP, {}, None),
            ("dsd_b", {"kind": "tokens"}, {"teacher_head": "clean"}, None),
            ("dit_s_256", None, {}, r"tap: network dit has no encoder to judge by; say where"),
            ("dit_s_256", {**TAP, "block": 13}, {}, r"tap\.block 13: network dit has 12 blocks"),
            ("dit_s_256", {**TAP, "block": 0}, {}, "should be greater than 0"),
            ("dit_s_256", TAP, {"teacher_head": "clean"}, "teacher_head clean: network dit has no"),
            ("dit_s_256", TAP, {"normalize_weights": True}, "is of EDM2's networks"),
            ("dit_s_256", TAP, {"data_deviation": None}, "data_deviation: say it of the data of"),
            ("sd15", TAP, {}, "method sid distils EDM's networks, DiT, SiT and DSD: no text_unet"),
        ],
    )
    def test_rows_of_adapted_networks(self, row, row_name, tap, changes, message):
        adversary = {**self.ADVERSARY, "tap": tap}
        method = {**self.SID, "data_deviation": 1.0, "adversary": adversary, **changes}
        values = {**row["one_step"], "network": row[row_name]["network"], "method": method}
        with accepted_unless(message):
            RowConfig.model_validate(values)

    def test_a_training_goes_on_beyond_its_stages(self, row):
        adversary = {**self.ADVERSARY, "joins_nimg": 200_000}
        values = {**row["one_step"], "method": {**self.SID, "adversary": adversary}}
        size = values["train"]["batch_size"]
        enough = -(-200_001 // size) * size  # images at a step's begin
        values["train"] = {**values["train"], "total_nimg": enough}
        with pytest.raises(ValueError, match=f"total_nimg {enough} ends before the generator is"):
            RowConfig.model_validate(values)
        values["train"]["total_nimg"] += 1
        RowConfig.model_validate(values)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"adversary": {**ADVERSARY, "tap": TAP}}, "tap: network ddpmpp judges by its encoder"),
            ({"data_deviation": 1.0}, "data_deviation 1.0: network ddpmpp takes 0.5 for granted"),
        ],
    )
    def test_edm_networks_have_neither_tap_nor_deviation(self, row, changes, message):
        values = {**row["one_step"], "method": {**self.SID, **changes}}
        with pytest.raises(ValueError, match=message):
            RowConfig.model_validate(values)


@pytest.mark.parametrize(
    ("name", "start", "method", "message"),
    [
        (
            "sid2a_ffhq_alpha_10", {"teacher": "edm_afhqv2"}, {},
            "sid2a_ffhq_alpha_10.data differs from that of edm_afhqv2, which it learns from",
        ),
        (
            "sida_dsd_b", {"teacher": "other_dsd_b"}, {},
            "start.teacher: the latents of other_dsd_b are those of another ViT than issd_dsd_b_10",
        ),
        (
            "sida_dsd_b", {"teacher": None}, {"teacher_head": "clean"},
            "teacher_head clean: issd_dsd_b_10 was tuned by method ssd, which leaves that head",
        ),
        ("sida_dsd_b", {}, {"teacher_head": "clean"}, None),
        ("sida_dsd_b", {"row": "dsd_b", "teacher": "issd_dsd_b_10"}, {}, None),
        ("sid2a_edm2_s", {"teacher": "edm2_s_dino"}, {}, None),
        ("sida_dsd_b", {"teacher": None}, {}, None),
    ],
)  # fmt: skip
def test_who_is_learned_from_speaks_the_same_latents(base, name, start, method, message):
    """DSD's are its own: a ViT of another training would teach in another language."""
    base["other_dsd_b"] = {**base["dsd_b"], "train": {**base["dsd_b"]["train"], "seed": 7}}
    base[name]["start"] |= start
    base[name]["method"] |= method
    with accepted_unless(message and re.escape(message)):
        ProjectConfig.from_parameters(base)


def test_who_guides_has_learned_to_do_without_classes(base):
    """EDM2-XS has not; the network without classes that guides it knows nothing else."""
    guided = base["edm2_s_guided"]["samplings"]["n32"]
    guided["guide"] = {"row": "edm2_xs"}
    with pytest.raises(ValueError, match=r"n32\.guide: network edm2 has not learned to do without"):
        ProjectConfig.from_parameters(base)
    base["edm2_xs"]["method"] = {**base["edm2_xs"]["method"], "class_dropout": 0.1}
    ProjectConfig.from_parameters(base)
    base["adopted"] = {**base["edm2_xs"], "study": "s", "start": {"row": "edm2_xs"}}
    base["adopted"]["method"] = {**base["edm2_xs"]["method"], "class_dropout": 0.0}
    del base["adopted"]["paper"]
    base["adopted"]["samplings"] = {"n32": {**guided, "guide": None}}  # learned by who came before
    ProjectConfig.from_parameters(base)


SELECTION = {
    "metric": "fid", "sampling": "plain", "nimg": 512_000, "num_images": 50_000, "batch_size": 64,
    "seed": 99,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "recall"}, "metric: no selection by 'recall'; there are fid, sfid, inception"),
        ({"metric": "rfid"}, "metric: no selection by 'rfid'"),
        ({"metric": "fd_tiny"}, "dsd_b.selection.metric 'fd_tiny' is not among evaluation.metrics"),
        ({"sampling": "absent"}, "the row has no sampling 'absent'; it has plain, unshifted,"),
        ({"seed": 0}, "selection.seed 0 is that of the sampling 'plain', whose numbers"),
        ({"nimg": 512_001}, "selection.nimg 512001 is no multiple of train.log_nimg"),
    ],
)
def test_a_selection_that_means_nothing_is_refused(base, change, message):
    base["dsd_b"]["train"] |= {"batch_size": 512, "log_nimg": 512, "checkpoint_nimg": 512}
    base["dsd_b"]["train"]["micro_batch_size"] = 64
    base["dsd_b"]["selection"] = dict(SELECTION)
    assert ProjectConfig.from_parameters(base).rows["dsd_b"].selection.nimg == 512_000
    base["dsd_b"]["selection"] |= change
    with pytest.raises(ValueError, match=re.escape(message)):
        ProjectConfig.from_parameters(base)


def test_a_selection_is_of_a_training(project):
    tiny = parameters(project, "tiny")
    name = next(n for n, row in tiny.items() if isinstance(row, dict) and not row.get("train", 1))
    sampling = next(iter(tiny[name]["samplings"]))
    tiny[name]["selection"] = {**SELECTION, "metric": "fd_tiny", "sampling": sampling}
    with pytest.raises(ValueError, match="selection is of a training"):
        ProjectConfig.from_parameters(tiny)
