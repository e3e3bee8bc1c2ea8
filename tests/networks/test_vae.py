import hashlib
import json
import logging
import socket
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from pydantic import ValidationError

from selfdistill.data.latents import CONVENTIONS, sample_latents, unscale_latents
from selfdistill.networks.vae import CONFIG_FILE, VAE, WEIGHTS_FILE, weights_directory
from selfdistill.networks.vae_config import VAEConfig

TINY = {
    "weights": "random",
    "seed": 0,
    "architecture": {
        "block_out_channels": [8, 8, 16, 16],
        "layers_per_block": 1,
        "norm_num_groups": 4,
    },
    "batch_size": 4,
}
SD, EDM2 = CONVENTIONS["sd"], CONVENTIONS["edm2"]

both = pytest.mark.parametrize("name", CONVENTIONS)


def config(**changes) -> VAEConfig:
    return VAEConfig.model_validate(TINY | changes)


def stored(path, **changes) -> VAEConfig:
    return VAEConfig.model_validate({"weights": str(path), "batch_size": 4} | changes)


def images(num: int = 2, height: int = 32, width: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (num, 3, height, width), generator=generator).float()


@pytest.fixture(scope="module")
def vae() -> VAE:
    return VAE(config())


@pytest.fixture
def saved(tmp_path, vae):
    vae.autoencoder.save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


class TestMoments:
    @pytest.mark.parametrize(("name", "low"), [("sd", -1), ("edm2", 0)])
    def test_they_are_the_posterior_of_diffusers(self, vae, name, low):
        x = images()
        with torch.no_grad():
            fed = low + (1 - low) * x / 255
            posterior = vae.autoencoder.encode(fed).latent_dist
        moments = vae.encode(x, CONVENTIONS[name])
        assert moments.shape == (2, 8, 4, 4)
        torch.testing.assert_close(moments[:, :4], posterior.mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(moments[:, 4:], posterior.std, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(moments[:, 4:], (0.5 * posterior.logvar).exp())

    def test_the_two_conventions_see_different_pixels(self, vae):
        assert not torch.allclose(vae.encode(images(), SD), vae.encode(images(), EDM2), atol=1e-3)

    def test_those_of_a_mirrored_image_are_not_mirrored(self, vae):
        """So a set that is flipped at random stores both orientations."""
        x = images()
        moments, mirrored = vae.encode(x, SD), vae.encode(x.flip(3), SD)
        error = (mirrored - moments.flip(3)).norm() / moments.norm()
        assert error > 0.1

    def test_not_even_if_every_kernel_is_symmetric(self):
        """The encoder pads on the right and below only, where it halves the sides."""
        symmetric = VAE(config())
        for weight in symmetric.autoencoder.parameters():
            if weight.ndim == 4:
                weight.copy_((weight + weight.flip(3)) / 2)
        x = images()
        moments, mirrored = symmetric.encode(x, SD), symmetric.encode(x.flip(3), SD)
        assert (mirrored - moments.flip(3)).norm() / moments.norm() > 0.01

    def test_autocast_changes_nothing(self, vae):
        x = images()
        moments = vae.encode(x, SD)
        decoded = vae.decode(moments[:, :4])
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(vae.encode(x, SD), moments)
            assert torch.equal(vae.decode(moments[:, :4]), decoded)
        assert moments.dtype == decoded.dtype == torch.float32

    def test_it_is_frozen(self, vae):
        assert not vae.training
        assert not any(weight.requires_grad for weight in vae.parameters())
        x = images().requires_grad_()
        assert not vae.encode(x, SD).requires_grad

    @both
    def test_decoding_a_sample_is_decoding_its_unscaled_latent(self, vae, name):
        moments = vae.encode(images(height=16), CONVENTIONS[name])
        z = sample_latents(moments, torch.zeros(2, 4, 2, 4), CONVENTIONS[name])
        decoded = vae.decode(unscale_latents(z, CONVENTIONS[name]))
        assert decoded.shape == (2, 3, 16, 32)
        with torch.no_grad():
            expected = vae.autoencoder.decode(moments[:, :4]).sample
        torch.testing.assert_close(decoded, expected, rtol=1e-4, atol=1e-4)

    def test_wrong_shapes_are_named(self, vae):
        with pytest.raises(ValueError, match=r"36 x 32 pixels .* multiples of 8"):
            vae.encode(images(height=36), SD)
        with pytest.raises(ValueError, match=r"\(N, 3, H, W\), got \[2, 1, 32, 32\]"):
            vae.encode(images()[:, :1], SD)
        with pytest.raises(ValueError, match=r"\(N, 4, h, w\), got \[2, 8, 4, 4\]; sample"):
            vae.decode(vae.encode(images(), SD))


class TestRandom:
    def test_weights_are_fixed_by_their_seed_and_leave_the_global_state_alone(self, vae):
        torch.manual_seed(5)
        before = torch.random.get_rng_state()
        again, other = VAE(config()), VAE(config(seed=1))
        assert torch.equal(before, torch.random.get_rng_state())
        assert torch.equal(again.encode(images(), SD), vae.encode(images(), SD))
        assert not torch.allclose(other.encode(images(), SD), vae.encode(images(), SD))
        assert again.digest() == vae.digest() != other.digest()

    def test_the_digest_is_of_all_names_and_values_in_the_order_of_the_names(self, vae):
        expected = hashlib.sha256()
        for name, weight in sorted(vae.autoencoder.state_dict().items()):
            expected.update(name.encode() + weight.numpy().tobytes())
        assert vae.digest() == expected.hexdigest()
        assert VAE(config(weights_sha256=vae.digest())).digest() == vae.digest()
        with pytest.raises(ValueError, match=f"VAE random are others .* hash to {vae.digest()}"):
            VAE(config(weights_sha256="0" * 64))

    @pytest.mark.slow
    def test_without_an_architecture_it_has_the_published_size(self):
        vae = VAE(config(architecture={}))
        assert sum(weight.numel() for weight in vae.parameters()) == 83_653_863

    def test_a_wrong_keyword_or_size_is_named(self):
        with pytest.raises(ValueError, match=r"colour_channels.*mend the VAE's `architecture`"):
            VAE(config(architecture={"colour_channels": 3}))
        with pytest.raises(ValueError, match="downsampling 4, where 8 is declared"):
            VAE(config(architecture=TINY["architecture"] | {"block_out_channels": [8, 8, 16]}))
        with pytest.raises(ValueError, match="latent_channels 16, where 4 is declared"):
            VAE(config(architecture=TINY["architecture"] | {"latent_channels": 16}))
        with pytest.raises(ValueError, match="colours in 1, where 3 is declared"):
            VAE(config(architecture=TINY["architecture"] | {"in_channels": 1}))

    def test_other_sizes_can_be_declared(self):
        small = TINY["architecture"] | {"block_out_channels": [8, 8, 16]}
        vae = VAE(config(architecture=small, downsampling=4, latent_channels=2))
        assert vae.encode(images(height=12), SD).shape == (2, 4, 3, 8)


@pytest.mark.usefixtures("no_network")
class TestDirectory:
    def test_a_saved_vae_comes_back_bit_for_bit(self, vae, saved):
        before = torch.random.get_rng_state()
        loaded = VAE(stored(saved))
        assert torch.equal(before, torch.random.get_rng_state())
        assert torch.equal(loaded.encode(images(), SD), vae.encode(images(), SD))
        raw = torch.randn(1, 4, 4, 4)
        assert torch.equal(loaded.decode(raw), vae.decode(raw))
        assert loaded.digest() == vae.digest()
        assert not any(weight.requires_grad for weight in loaded.parameters())

    def test_a_random_one_needs_no_network_either(self):
        VAE(config())

    def test_the_old_names_of_attention_are_read_as_diffusers_reads_them(self, vae, saved):
        """The published files have them."""
        from diffusers import AutoencoderKL

        new = safetensors.torch.load_file(saved / WEIGHTS_FILE)
        names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        old = {}
        for name, weight in new.items():
            for now, then in names.items():
                name = name.replace(f".attentions.0.{now}.", f".attentions.0.{then}.")
            old[name] = weight
        assert len(old.keys() - new.keys()) == 16  # weights and biases, encoder and decoder
        safetensors.torch.save_file(old, saved / WEIGHTS_FILE, {"format": "pt"})
        loaded = VAE(stored(saved))
        reference = AutoencoderKL.from_pretrained(
            saved, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
        )
        assert loaded.digest() == vae.digest()
        for name, weight in reference.state_dict().items():
            assert torch.equal(weight, loaded.autoencoder.state_dict()[name])

    def test_half_precision_on_disk_is_float32_in_memory(self, vae, saved):
        halves = {name: x.half() for name, x in vae.autoencoder.state_dict().items()}
        safetensors.torch.save_file(halves, saved / WEIGHTS_FILE)
        assert VAE(stored(saved)).encode(images(), SD).dtype == torch.float32

    def test_a_subfolder_of_a_pipelines_directory_is_read(self, vae, saved):
        parent = stored(saved.parent, subfolder=saved.name)
        assert VAE(parent).digest() == vae.digest()
        assert weights_directory(parent) == saved.parent
        with pytest.raises(FileNotFoundError, match=f"no file elsewhere/{CONFIG_FILE}"):
            VAE(stored(saved.parent, subfolder="elsewhere"))

    def test_a_directory_with_a_pickle_only_is_refused(self, vae, saved):
        (saved / WEIGHTS_FILE).unlink()
        torch.save(vae.autoencoder.state_dict(), saved / "diffusion_pytorch_model.bin")
        with pytest.raises(
            FileNotFoundError,
            match=rf"vae: no file {WEIGHTS_FILE}.*diffusion_pytorch_model\.bin is a pickle",
        ):
            VAE(stored(saved))

    def test_a_wrong_directory_is_named(self, tmp_path, saved):
        with pytest.raises(FileNotFoundError, match=rf"nowhere: no such directory.*{CONFIG_FILE}"):
            VAE(stored(tmp_path / "nowhere"))
        with pytest.raises(FileNotFoundError, match=rf"no file {CONFIG_FILE} in it; download"):
            VAE(stored(tmp_path))
        with pytest.raises(FileNotFoundError, match="no such directory"):
            VAE(stored(saved / WEIGHTS_FILE))
        with pytest.raises(ValueError, match=r"has no revision 'main'"):
            VAE(stored(saved, revision="main"))

    def test_another_networks_directory_is_named(self, saved):
        written = json.loads((saved / CONFIG_FILE).read_text())
        (saved / CONFIG_FILE).write_text(json.dumps(written | {"_class_name": "AutoencoderTiny"}))
        with pytest.raises(ValueError, match="is of AutoencoderTiny, not of an AutoencoderKL"):
            VAE(stored(saved))
        (saved / CONFIG_FILE).write_text("{")
        with pytest.raises(ValueError, match=r"config\.json is not JSON"):
            VAE(stored(saved))

    def test_missing_and_damaged_weights_are_named(self, vae, saved):
        weights = dict(vae.autoencoder.state_dict())
        del weights["quant_conv.bias"]
        safetensors.torch.save_file(weights, saved / WEIGHTS_FILE)
        with pytest.raises(ValueError, match=r"missing: quant_conv\.bias"):
            VAE(stored(saved))
        (saved / WEIGHTS_FILE).write_bytes(b"\0" * 64)
        with pytest.raises(ValueError, match="not a file of weights, or damaged"):
            VAE(stored(saved))

    def test_wrong_channels_and_downsampling_are_named(self, saved):
        with pytest.raises(ValueError, match="latent_channels 4, where 16 is declared"):
            VAE(stored(saved, latent_channels=16))
        with pytest.raises(ValueError, match="downsampling 8, where 16 is declared"):
            VAE(stored(saved, downsampling=16))


class TestHub:
    @pytest.fixture
    def snapshot(self, monkeypatch):
        """Stand in for the hub's client, which asks for nothing here."""
        import huggingface_hub

        asked = []

        def download(result):
            def snapshot_download(repo_id, **kwargs):
                asked.append((repo_id, kwargs))
                if isinstance(result, Exception):
                    raise result
                return str(result)

            monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
            return asked

        return download

    def test_two_files_of_one_revision_are_asked_for(self, vae, saved, snapshot):
        asked = snapshot(saved)
        loaded = VAE(stored("stabilityai/sd-vae-ft-ema", revision="abc"))
        assert loaded.digest() == vae.digest()
        expected = {"revision": "abc", "allow_patterns": [CONFIG_FILE, WEIGHTS_FILE]}
        assert asked == [("stabilityai/sd-vae-ft-ema", expected)]

    def test_without_the_hub_it_says_what_to_download_and_where_to_put_it(self, snapshot):
        snapshot(OSError("no route"))
        with pytest.raises(
            FileNotFoundError,
            match=rf"no route.*{CONFIG_FILE} and {WEIGHTS_FILE} of stabilityai/sd-vae-ft-mse from "
            ".*one directory and give its path as the VAE's `weights`",
        ):
            VAE(stored("stabilityai/sd-vae-ft-mse"))

    def test_so_it_does_with_the_hubs_own_client_offline(self, monkeypatch, no_network, tmp_path):
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(FileNotFoundError, match="download config"):
            VAE(stored("nobody/nothing"))

    def test_a_hub_id_is_told_from_a_path(self, saved, monkeypatch):
        assert weights_directory(stored("stabilityai/sd-vae-ft-ema")) is None
        assert weights_directory(config()) is None
        assert weights_directory(stored(saved)) == saved
        monkeypatch.chdir(saved.parent.parent)  # a directory that exists comes first
        relative = f"{saved.parent.name}/{saved.name}"
        assert str(weights_directory(stored(relative))) == relative
        for path in ("./a/b", "../b", "/a/b", "a/b/c", "name", "a/", "~a/b"):
            with pytest.raises(FileNotFoundError, match="no such directory"):
                weights_directory(stored(path))


class TestConfig:
    def test_keys_that_would_mean_nothing_are_refused(self):
        with pytest.raises(ValidationError, match="revision mean nothing"):
            config(revision="main")
        with pytest.raises(ValidationError, match="seed and architecture mean nothing"):
            config(weights="stabilityai/sd-vae-ft-ema")

    @pytest.mark.parametrize("key", ["downsampling", "latent_channels", "batch_size"])
    def test_sizes_are_positive(self, key):
        with pytest.raises(ValidationError, match=key):
            config(**{key: 0})

    def test_the_module_imports_no_diffusers(self):
        code = "import sys, selfdistill.networks.vae; print('diffusers' in sys.modules)"
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert result.stdout.strip() == "False"


def test_loading_is_silent(caplog, saved, capsys):
    with caplog.at_level(logging.WARNING):
        VAE(stored(saved))
    assert not caplog.records
    assert capsys.readouterr().err == ""
