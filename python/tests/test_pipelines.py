"""`RemoteVAE` in pipelines of diffusers: small random models are made here, saved and loaded as a user loads them, once with
the local autoencoder and once with ours, and must draw the same pictures."""


import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from conftest import serve  # noqa: E402
from remote_vae import RemoteVAE, RequestRejected  # noqa: E402

diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

TEXT = 32
BLOCKS = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
WIDTHS = {"block_out_channels": [8, 16, 16, 16], "norm_num_groups": 4, "layers_per_block": 1}


def autoencoder_kl(**config):
    return diffusers.AutoencoderKL(**BLOCKS, **WIDTHS, **config)


def autoencoder_tiny():
    return diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
    )


def autoencoder_hunyuan():
    return diffusers.AutoencoderKLHunyuanVideo(latent_channels=4, **WIDTHS)


def autoencoder_wan():
    return diffusers.AutoencoderKLWan(base_dim=4, num_res_blocks=1)


def unet(**config):
    return diffusers.UNet2DConditionModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT,
        attention_head_dim=8,
        norm_num_groups=8,
        **config,
    )


def stable_diffusion(vae):
    texts = dict.fromkeys(["text_encoder", "tokenizer", "safety_checker", "feature_extractor"])
    scheduler = diffusers.DDIMScheduler(steps_offset=1, clip_sample=False)
    return diffusers.StableDiffusionPipeline(
        vae=vae, unet=unet(), scheduler=scheduler, requires_safety_checker=False, **texts
    )


def stable_diffusion_xl(vae):
    texts = dict.fromkeys(["text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"])
    conditions = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    model = unet(projection_class_embeddings_input_dim=6 * 8 + TEXT, **conditions)
    scheduler = diffusers.EulerDiscreteScheduler()
    return diffusers.StableDiffusionXLPipeline(
        vae=vae, unet=model, scheduler=scheduler, add_watermarker=False, **texts
    )


def flux(vae):
    texts = dict.fromkeys(["text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"])
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT,
        pooled_projection_dim=TEXT,
        axes_dims_rope=(4, 4, 8),
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return diffusers.FluxPipeline(vae=vae, transformer=transformer, scheduler=scheduler, **texts)


def hunyuan_video(vae):
    texts = dict.fromkeys(["text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"])
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=1,
        patch_size_t=1,
        text_embed_dim=TEXT,
        pooled_projection_dim=TEXT,
        rope_axes_dim=(2, 4, 4),
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return diffusers.HunyuanVideoPipeline(vae=vae, transformer=transformer, scheduler=scheduler, **texts)


def wan(vae):
    transformer = diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=TEXT,
        freq_dim=16,
        ffn_dim=32,
        num_layers=1,
        rope_max_seq_len=32,
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    texts = dict.fromkeys(["text_encoder", "tokenizer"])
    return diffusers.WanPipeline(vae=vae, transformer=transformer, scheduler=scheduler, **texts)


def prompts(pipeline):
    """What text encoders would have made."""
    draw = torch.Generator().manual_seed(2)
    embeds = {"prompt_embeds": torch.randn(1, 4, TEXT, generator=draw)}
    if not isinstance(pipeline, (diffusers.StableDiffusionPipeline, diffusers.WanPipeline)):
        embeds["pooled_prompt_embeds"] = torch.randn(1, TEXT, generator=draw)
    if isinstance(pipeline, diffusers.HunyuanVideoPipeline):
        embeds["prompt_attention_mask"] = torch.ones(1, 4)
    return embeds


#: Pipelines with their autoencoders, and what else is asked of them.
CASES = {
    "sd": (stable_diffusion, lambda: autoencoder_kl(latent_channels=4), {"guidance_scale": 1.0}),
    "tiny": (stable_diffusion, autoencoder_tiny, {"guidance_scale": 1.0}),
    "sdxl": (
        stable_diffusion_xl,
        # force_upcast is true in most: our side never needs it.
        lambda: autoencoder_kl(latent_channels=4, scaling_factor=0.13025, force_upcast=True),
        {"guidance_scale": 1.0},
    ),
    "playground": (
        stable_diffusion_xl,
        lambda: autoencoder_kl(
            latent_channels=4,
            scaling_factor=0.5,
            latents_mean=[-1.6574, 1.886, -1.383, 2.5155],
            latents_std=[8.4927, 5.9022, 6.5498, 5.2299],
        ),
        {"guidance_scale": 1.0},
    ),
    "flux": (
        flux,
        lambda: autoencoder_kl(
            latent_channels=16,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        {},
    ),
    "hunyuan": (hunyuan_video, autoencoder_hunyuan, {"num_frames": 9}),
    "wan": (wan, autoencoder_wan, {"num_frames": 9, "guidance_scale": 1.0}),
}


def lively(vae):
    """Random weights give almost grey pictures: more contrast, so that a difference can be seen."""
    for name, parameter in vae.named_parameters():
        if "conv_out" in name or "decoder.layers" in name:
            parameter.data *= 4
    return vae.eval()


class Saved:
    """A pipeline in a folder."""

    def __init__(self, pipeline, folder):
        self.kind, self.folder = type(pipeline), folder
        self.absent = {name: None for name, part in pipeline.components.items() if part is None}
        # diffusers loads models that keep some layers in float32 only where the package accelerate is: they are handed over.
        self.kept = {
            name: part for name, part in pipeline.components.items() if getattr(part, "_keep_in_fp32_modules", None)
        }
        pipeline.save_pretrained(folder)

    def load(self, kind=None, **parts):
        """As a user does it; `parts` take the place of saved ones."""
        return (kind or self.kind).from_pretrained(self.folder, **self.absent, **self.kept, **parts)


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    """Saved pipelines, by name."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("pipelines")
    return {name: Saved(make(lively(vae())), folder / name) for name, (make, vae, _) in CASES.items()}


@pytest.fixture(scope="module")
def models(pipelines):
    """A server of all their autoencoders."""
    with serve(*(f"--model={name}={saved.folder / 'vae'}" for name, saved in pipelines.items())) as address:
        yield address


def draw(pipeline, **options):
    size = {} if "image" in options else {"height": 64, "width": 96}
    generator = torch.Generator().manual_seed(3)
    calls = {"num_inference_steps": 2, "generator": generator, "output_type": "np", **size, **options}
    output = pipeline(**prompts(pipeline), **calls)
    return np.asarray(getattr(output, "images", None) if hasattr(output, "images") else output.frames)


@pytest.mark.parametrize("name", CASES)
def test_pictures_are_those_of_the_local_autoencoder(pipelines, models, name):
    expected = draw(pipelines[name].load(), **CASES[name][2])
    found = draw(pipelines[name].load(vae=RemoteVAE(f"{models}/{name}")), **CASES[name][2])
    assert found.shape == expected.shape and expected.std() > 0.02, (found.shape, expected.std())
    # Numbers travel as float16 in -1 to 1, and are halved.
    assert np.abs(found - expected).max() <= 1e-3


def test_images_are_encoded_as_the_local_autoencoder_does(pipelines, models):
    """The same generator draws the same latents from the distribution, so that image to image gives the same picture."""
    pixels = np.random.default_rng(4).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    options = {"image": Image.fromarray(pixels), "strength": 0.6, "num_inference_steps": 4, "guidance_scale": 1.0}
    made = [
        draw(pipelines["sd"].load(diffusers.StableDiffusionImg2ImgPipeline, **ours), **options)
        for ours in ({}, {"vae": RemoteVAE(f"{models}/sd")})
    ]
    assert np.abs(made[0] - made[1]).max() <= 4e-3


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_the_distribution_is_that_of_the_local_autoencoder(pipelines, models, name):
    """Also of bright pixels without one value below zero, which the protocol alone would take as 0 to 1."""
    local = diffusers.AutoencoderKL.from_pretrained(pipelines[name].folder / "vae")
    ours = RemoteVAE(f"{models}/{name}")
    draws = torch.Generator().manual_seed(5)
    for pixels in (torch.rand(2, 3, 16, 24, generator=draws) * 2 - 1, torch.rand(1, 3, 16, 16, generator=draws)):
        with torch.no_grad():
            expected = local.encode(pixels).latent_dist
        found = ours.encode(pixels).latent_dist
        for part in ("mean", "std"):
            difference = getattr(found, part) - getattr(expected, part)
            assert (difference.abs() <= 2e-3 * getattr(expected, part).abs().clamp(min=1)).all(), part
        samples = [each.sample(torch.Generator().manual_seed(6)) for each in (found, expected)]
        assert torch.allclose(*samples, rtol=2e-3, atol=4e-3)
        assert torch.equal(found.mode(), found.mean)


@pytest.mark.parametrize(
    ("name", "kind", "channels"),
    [("hunyuan", diffusers.AutoencoderKLHunyuanVideo, 4), ("wan", diffusers.AutoencoderKLWan, 16)],
)
def test_clips_are_encoded_as_the_local_autoencoder_does(pipelines, models, name, kind, channels):
    local = kind.from_pretrained(pipelines[name].folder / "vae")
    clip = torch.rand(1, 3, 9, 16, 24, generator=torch.Generator().manual_seed(8)) * 2 - 1
    with torch.no_grad():
        expected = local.encode(clip).latent_dist
    found = RemoteVAE(models, model=name).encode(clip).latent_dist
    assert found.mean.shape == (1, channels, 3, 2, 3)
    assert torch.allclose(found.mean, expected.mean, rtol=2e-3, atol=2e-3)
    assert torch.allclose(found.std, expected.std, rtol=2e-3, atol=2e-3)


def test_the_module_behaves_as_an_autoencoder(pipelines, models):
    vae = RemoteVAE(models, model="sd")
    assert vae.config.scaling_factor == 0.18215 and vae.config.latent_channels == 4
    assert (vae.dtype, vae.device, vae.spatial_compression_ratio) == (torch.float32, torch.device("cpu"), 8)
    for switch in (vae.enable_tiling, vae.disable_tiling, vae.enable_slicing, vae.disable_slicing):
        switch()
    latents = torch.randn(2, 4, 4, 6, generator=torch.Generator().manual_seed(7))
    both = vae.decode(latents).sample
    assert both.shape == (2, 3, 32, 48) and both.dtype == torch.float32
    assert torch.equal(both[1:], vae.decode(latents[1:], return_dict=False)[0])
    turned = latents.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)
    assert torch.equal(both, vae.decode(turned).sample)
    assert vae.half().decode(latents.half()).sample.dtype == torch.float16
    assert vae.encode(torch.zeros(1, 3, 16, 16, dtype=torch.bfloat16)).latent_dist.mean.dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match="no gradients"):
        vae.decode(latents.requires_grad_())
    with pytest.raises(RequestRejected, match="latents: expected .* got"):
        vae.decode(torch.zeros(1, 5, 4, 4))
    assert RemoteVAE(models, model="tiny").encode(torch.zeros(1, 3, 16, 16)).latents.shape == (1, 4, 2, 2)
    with pytest.raises(RuntimeError, match="no model is called 'flax'; the server has sd, tiny"):
        RemoteVAE(models, model="flax")
    with pytest.raises(ValueError, match="either the `url`"):
        RemoteVAE()


def test_a_local_server_is_one_line_and_ends_with_it(pipelines):
    vae = RemoteVAE(local=True, model=str(pipelines["sd"].folder / "vae"), threads=1)
    process = vae._server._process
    pipeline = pipelines["sd"].load(vae=vae)
    assert draw(pipeline, guidance_scale=1.0).shape == (1, 64, 96, 3)
    vae.close()
    assert process.wait(30) == 0
    with pytest.raises(RuntimeError, match="remote-vae did not start: .*nowhere"):
        RemoteVAE(local=True, model="./nowhere")
