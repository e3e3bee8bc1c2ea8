"""Stable Diffusion's U-Net: what it reads, what is mixed in it, and whose weights it takes."""

import copy
import json

import pytest
import torch
from safetensors.torch import save_file

from selfdistill.data.loader import Batch
from selfdistill.diffusion.config import SolverConfig
from selfdistill.draws import Draws
from selfdistill.methods.config import MethodConfig
from selfdistill.methods.registry import build_method, build_network
from selfdistill.networks.config import NetworkConfig
from selfdistill.networks.fusion import Fusion
from selfdistill.networks.prompts import Prompts, text_digest, text_directory
from selfdistill.networks.text_unet_config import TextConfig

NAMES = ["a cat on a mat", "two dogs", "rain"]
TEXT = {
    "weights": "random",
    "seed": 0,
    "architecture": {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2
    },
}  # fmt: skip
SMALL = {
    "name": "text_unet",
    "latent_size": 8,
    "latent_channels": 3,
    "architecture": {
        "block_out_channels": [8, 16],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 2,
        "cross_attention_dim": 16,
    },
    "text": TEXT,
}


def small(**changes):
    torch.manual_seed(0)
    network = build_network(NetworkConfig.model_validate({**SMALL, **changes})).eval()
    network.prompts.take(NAMES)
    return network


def inputs(num=2, seed=0):
    rng = torch.Generator().manual_seed(seed)
    z = torch.randn(num, 3, 8, 8, generator=rng)
    return z, torch.tensor([700, 300])[:num], torch.tensor([0, 2])[:num]


def issd(**target):
    return {
        "name": "ssd",
        "target": {"form": "implicit", "mix_prev": 0.3, "site": "branch", **target},
        "grid": {"num_steps": 3, "times": [801, 401, 1]},
        "class_dropout": 0.1,
    }


def method_of(config):
    torch.manual_seed(0)
    network, method = NetworkConfig.model_validate(SMALL), MethodConfig.model_validate(config)
    built = build_method(network, method, {})
    built.name_classes(NAMES)
    return built


def batch_of(size):
    draws = Draws(0, torch.arange(size))
    images = Draws(1, torch.arange(size)).normal("images", 3, 8, 8)
    return Batch(images=images, labels=torch.arange(size) % 3, features=None, draws=draws)


def test_v1_5_has_its_published_size():
    values = {
        "name": "text_unet", "latent_size": 64, "latent_channels": 4, "text": {"weights": "a/b"}
    }  # fmt: skip
    with torch.device("meta"):
        network = build_network(NetworkConfig.model_validate(values))
    assert sum(p.numel() for p in network.parameters()) == 859_520_964
    assert len(network.state_dict()) == 686


class TestPrompts:
    def test_another_prompt_gives_another_prediction(self):
        network, (z, t, labels) = small(), inputs()
        with torch.no_grad():
            first, other = network(z, t, labels), network(z, t, labels.flip(0))
        assert not torch.allclose(first, other, atol=1e-4)

    def test_no_class_is_the_empty_prompt(self):
        network, (z, t, labels) = small(), inputs()
        nothing = torch.full_like(labels, network.null_class)
        with torch.no_grad():
            free = network(z, t, nothing)
            network.prompts.take(["", "x"])
            assert torch.equal(free, network(z, t, torch.zeros_like(labels)))

    def test_nobody_is_asked_before_the_labels_have_a_meaning(self):
        network = build_network(NetworkConfig.model_validate(SMALL))
        with pytest.raises(ValueError, match="call the method's name_classes first"):
            network(*inputs())

    def test_copies_share_them_and_no_state_has_them(self):
        network = small()
        assert copy.deepcopy(network).prompts is network.prompts
        assert all(key.startswith("unet.") for key in network.state_dict())

    def test_an_encoder_of_another_width_is_refused(self):
        wider = {**TEXT, "architecture": {**TEXT["architecture"], "hidden_size": 32}}
        with pytest.raises(ValueError, match="has width 32, the network listens to 16"):
            small(text=wider)

    def test_a_class_says_any_of_its_prompts(self):
        prompts = Prompts(TextConfig(**TEXT), 16)
        prompts.take(["a", "b\nc\nd", "e"])
        labels = torch.tensor([1] * 3000 + [2])
        assert prompts.first(labels)[[0, -1]].tolist() == [1, 4]
        drawn = prompts.draw(labels, Draws(0, torch.arange(3001)))
        assert drawn[-1] == 4
        counts = torch.bincount(drawn[:-1], minlength=5)
        assert counts[[0, 4]].tolist() == [0, 0]
        assert (counts[1:4] - 1000).abs().max() < 4 * (3000 * 2 / 9) ** 0.5

    def test_a_batch_is_encoded_once_for_all_passes_that_ask_for_it(self):
        prompts = Prompts(TextConfig(**TEXT), 16)
        prompts.take(NAMES)
        labels, free = torch.tensor([0, 1]), torch.tensor([-1, -1])
        first = prompts(labels)
        prompts(free)
        assert prompts(labels) is first
        labels[0] = 2  # the same tensor, and not what was encoded
        assert not torch.equal(prompts(labels), first)
        kept = prompts(free)
        prompts.take(NAMES[:1])
        assert prompts(free) is not kept

    def test_long_prompts_are_cut_at_77_tokens(self):
        prompts = Prompts(TextConfig(**TEXT), 16)
        prompts.take(["x" * 75, "x" * 400])
        both = prompts(torch.tensor([0, 1]))
        assert both.shape == (2, 77, 16)
        assert torch.equal(both[0], both[1])

    @pytest.fixture
    def directory(self, tmp_path):
        """A pipeline's directory as diffusers has it: an encoder, and a tokeniser of letters."""
        from transformers import CLIPTextConfig, CLIPTextModel

        torch.manual_seed(3)
        letters = "abcdefghijklmnopqrstuvwxyz"
        words = [*letters, *(f"{letter}</w>" for letter in letters), "ca", "cat</w>"]
        vocab = {word: number for number, word in enumerate(words)}
        vocab |= {"<|startoftext|>": len(vocab), "<|endoftext|>": len(vocab) + 1}
        folder = tmp_path / "pipeline" / "tokenizer"
        folder.mkdir(parents=True)
        (folder / "vocab.json").write_text(json.dumps(vocab))
        (folder / "tokenizer_config.json").write_text("{}")
        (folder / "special_tokens_map.json").write_text("{}")
        (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
        sizes = {**TEXT["architecture"], "vocab_size": len(vocab), "max_position_embeddings": 77}
        special = {"bos_token_id": len(vocab) - 2, "eos_token_id": len(vocab) - 1}
        encoder = CLIPTextModel(CLIPTextConfig(**sizes, **special)).eval()
        encoder.save_pretrained(folder.parent / "text_encoder")
        return folder.parent, encoder, vocab

    def test_a_pipelines_directory_is_read_as_transformers_does(self, directory):
        path, encoder, vocab = directory
        prompts = Prompts(TextConfig(weights=str(path)), 16)
        prompts.take(["Cat a"])
        start, end = vocab["<|startoftext|>"], vocab["<|endoftext|>"]
        tokens = torch.tensor([[start, vocab["cat</w>"], vocab["a</w>"], *[end] * 74]])
        with torch.no_grad():
            expected = encoder(tokens).last_hidden_state
        torch.testing.assert_close(prompts(torch.tensor([0])), expected)

    def test_a_directory_with_pickles_is_refused(self, directory):
        path, encoder, _ = directory
        (path / "text_encoder" / "model.safetensors").unlink()
        torch.save(encoder.state_dict(), path / "text_encoder" / "pytorch_model.bin")
        with pytest.raises(FileNotFoundError, match=r"no file text_encoder/model\.safetensors.*pi"):
            text_directory(TextConfig(weights=str(path)))

    def test_half_an_encoder_is_refused(self, directory):
        path, encoder, _ = directory
        weights = dict(encoder.state_dict())
        lost = next(name for name in weights if name.endswith("q_proj.weight"))
        del weights[lost]
        save_file(weights, path / "text_encoder" / "model.safetensors", {"format": "pt"})
        with pytest.raises(
            ValueError, match=r"not the whole of one; missing keys: .*q_proj\.weigh"
        ):
            Prompts(TextConfig(weights=str(path)), 16).take(["a"])

    def test_an_encoder_is_known_by_its_digest(self, directory):
        path, _, _ = directory
        config = TextConfig(weights=str(path))
        digest = text_digest(config)
        assert len(digest) == 64
        pinned = config.model_copy(update={"weights_sha256": digest})
        Prompts(pinned, 16).take(["a"])
        (path / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
        with pytest.raises(ValueError, match=r"others than its weights_sha256 says"):
            Prompts(pinned, 16).take(["a"])
        assert text_digest(config) != digest

    def test_what_transformers_would_swallow_is_refused(self):
        wrong = {**TEXT, "architecture": {**TEXT["architecture"], "num_hiden_layers": 9}}
        with pytest.raises(ValueError, match="CLIPTextConfig has no num_hiden_layers"):
            Prompts(TextConfig(**wrong), 16).take(["a"])

    def test_keys_that_mean_nothing_are_refused(self):
        with pytest.raises(ValueError, match="seed and architecture mean nothing"):
            TextConfig(**{**TEXT, "weights": "a/b"})


class TestMixing:
    @pytest.mark.parametrize(("site", "num_places"), [("branch", 8 + 4 * 3), ("block", 8 + 4)])
    def test_every_block_is_recorded(self, site, num_places):
        network, given = small(), inputs()
        kinds = [type(module).__name__ for module in network.modules()]
        counts = kinds.count("ResnetBlock2D"), kinds.count("BasicTransformerBlock")
        assert num_places == counts[0] + counts[1] * (3 if site == "branch" else 1)
        with torch.no_grad():
            output, (found,) = network.record(*given, site)
            assert torch.equal(output, network(*given))
        assert len(found) == num_places

    @pytest.mark.parametrize("site", ["branch", "block"])
    def test_nothing_of_another_pass_and_all_of_the_own_change_nothing(self, site):
        network, given = small(), inputs()
        with torch.no_grad():
            plain, own = network.record(*given, site)
            _, other = network.record(*inputs(seed=1), site)
            assert torch.equal(plain, network(*given, Fusion(site, 0.0, other)))
            mixed = network(*given, Fusion(site, torch.tensor([0.3, 1.0]), own))
        torch.testing.assert_close(mixed, plain)

    def test_all_of_another_pass_behind_each_block_is_that_pass(self):
        """What the last block leaves is all that the output layer sees."""
        network, (z, t, labels) = small(), inputs()
        with torch.no_grad():
            other, found = network.record(*inputs(seed=1), "block")
            mixed = network(z, t, labels, Fusion("block", torch.tensor([1.0, 0.0]), found))
            torch.testing.assert_close(mixed[0], other[0])
            torch.testing.assert_close(mixed[1], network(z, t, labels)[1])

    def test_a_branch_is_mixed_before_it_is_added(self):
        network, given = small(), inputs()
        block = network.unet.down_blocks[0].resnets[0]
        stream = []
        handle = block.register_forward_hook(lambda _, args, output: stream.append(output))
        with torch.no_grad():
            _, (own,) = network.record(*given, "branch")
            _, (other,) = network.record(*inputs(seed=1), "branch")
            stream.clear()
            network(*given)
            network(*given, Fusion("branch", 0.25, [other]))
        handle.remove()
        plain, mixed = stream
        torch.testing.assert_close(mixed - plain, 0.25 * (other[0] - own[0]))

    def test_no_hook_stays_not_even_after_an_error(self):
        network, (z, t, labels) = small(), inputs()
        with pytest.raises(RuntimeError):
            network.record(z[:, :2], t, labels, "branch")
        assert not any(module._forward_hooks for module in network.modules())

    def test_gates_are_refused(self):
        with pytest.raises(ValueError, match="no gates: take site branch, or block"):
            small().record(*inputs(), "gated")


class TestMethods:
    @pytest.mark.parametrize("site", ["branch", "block", "output"])
    def test_without_mixing_the_loss_is_zero_at_first(self, site):
        losses = method_of(issd(site=site, mix_prev=0.0)).loss(batch_of(4))
        assert losses["distillation"].tolist() == [0] * 4

    def test_mixing_moves_the_network_and_not_its_frozen_copy(self):
        method = method_of(issd())
        loss = method.loss(batch_of(4))["distillation"].sum()
        loss.backward()
        assert loss > 0
        assert all(p.grad is not None for p in method.network.parameters())
        assert all(p.grad is None for p in method.frozen.parameters())

    def test_samples_follow_prompts_by_every_solver(self):
        method = method_of({"name": "diffusion", "class_dropout": 0.1, "ema_decay": None})
        eps, labels = batch_of(3).images, torch.arange(3)
        for solver in ("ddim", "plms2", "plms4", "dpm2"):
            config = SolverConfig(
                solver=solver, num_steps=3, times=(801, 401, 1), guidance=7.5,
                guidance_interval=(0, 1),
            )  # fmt: skip
            asked = []
            hook = method.network.register_forward_hook(lambda *_: asked.append(1))  # noqa: B023
            z0 = method.sample(eps, labels, config, Draws(0, labels))
            hook.remove()
            assert len(asked) == 2 * config.num_evaluations  # guided: twice each
            other = method.sample(eps, labels.flip(0), config, Draws(0, labels))
            assert not torch.allclose(z0[0], other[0], atol=1e-4)


class TestPublished:
    def test_diffusers_weights_load_as_they_are(self, tmp_path):
        saved, network = small(), small()
        for parameter in saved.parameters():
            torch.nn.init.normal_(parameter)
        saved.unet.save_pretrained(tmp_path)
        network.load_published(tmp_path / "diffusion_pytorch_model.safetensors")
        for name, value in saved.state_dict().items():
            assert torch.equal(network.state_dict()[name], value)

    def test_those_of_another_network_are_refused_by_name(self, tmp_path):
        network = small()
        weights = network.unet.state_dict()
        weights["surplus"] = weights.pop("conv_in.bias")
        save_file(weights, tmp_path / "unet.safetensors")
        with pytest.raises(ValueError, match=r"missing: conv_in\.bias; unexpected: surplus"):
            network.load_published(tmp_path / "unet.safetensors")

    def test_blocks_that_nothing_would_be_mixed_in_are_refused(self):
        blocks = {**SMALL["architecture"], "mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}
        with pytest.raises(ValueError, match=r"whose branches are not known here"):
            small(architecture=blocks)

    def test_sizes_are_said_once(self):
        with pytest.raises(ValueError, match=r"architecture\.in_channels: latent_size and"):
            small(architecture={**SMALL["architecture"], "in_channels": 5})

    def test_what_diffusers_cannot_build_is_refused(self):
        with pytest.raises(ValueError, match=r"mend network\.architecture"):
            small(architecture={"no_such": 1})
