"""Names of tensors in checkpoints of other origin than diffusers."""

import torch

KL_BLOCKS = 4


def ldm_name(name, blocks=KL_BLOCKS):
    """diffusers' name of a tensor in an AutoencoderKL -> its name in LDM and ComfyUI files."""
    parts = name.split(".")
    for index in range(len(parts) - 1):
        number = parts[index + 1]
        if parts[index] == "down_blocks":
            parts[index] = "down"
        elif parts[index] == "up_blocks":
            parts[index], parts[index + 1] = "up", str(blocks - 1 - int(number))
        elif parts[index] == "mid_block":
            parts[index] = "mid"
        elif parts[index] == "resnets" and parts[index - 1] == "mid":
            parts[index], parts[index + 1] = f"block_{int(number) + 1}", None
        elif parts[index] == "resnets":
            parts[index] = "block"
        elif parts[index] == "downsamplers":
            parts[index], parts[index + 1] = "downsample", None
        elif parts[index] == "upsamplers":
            parts[index], parts[index + 1] = "upsample", None
        elif parts[index] == "attentions":
            parts[index], parts[index + 1] = "attn_1", None
    name = ".".join(part for part in parts if part is not None)
    for ours, theirs in (
        ("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out"),
        ("conv_shortcut", "nin_shortcut"), ("conv_norm_out", "norm_out"),
    ):
        name = name.replace(f".{ours}.", f".{theirs}.")
    return name


def ldm_checkpoint(state):
    """A full LDM checkpoint in small: the autoencoder under its prefix, and tensors that are none of its business."""
    tensors = {}
    for name, value in state.items():
        if ".attentions." in name and value.ndim == 2:
            value = value[:, :, None, None]
        tensors["first_stage_model." + ldm_name(name)] = value.contiguous()
    tensors["model.diffusion_model.out.2.weight"] = torch.zeros(3, 2)
    tensors["cond_stage_model.logit_scale"] = torch.zeros(1)
    tensors["model_ema.decay"] = torch.zeros(1)
    tensors["first_stage_model.loss.logvar"] = torch.zeros(1)
    return tensors


def old_attention_names(state):
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        state = {name.replace(f".{new}.", f".{old}."): value for name, value in state.items()}
    return state


def bare_tiny(state, side):
    """One half of an AutoencoderTiny with the bare names of its original release (whose decoder begins with a clamp)."""
    shift = 1 if side == "decoder" else 0
    tensors = {}
    for name, value in state.items():
        owner, _, number, rest = name.split(".", 3)
        if owner == side:
            tensors[f"{int(number) + shift}.{rest}"] = value
    return tensors


def bfl_flux_two(state):
    """The names of the original FLUX.2 file: LDM's, with the quant convolutions inside the halves."""
    tensors = {}
    for name, value in state.items():
        if ".attentions." in name and value.ndim == 2:
            value = value[:, :, None, None]
        half = {"quant_conv": "encoder.", "post_quant_conv": "decoder."}.get(name.split(".")[0], "")
        tensors[half + ldm_name(name)] = value.contiguous()
    return tensors
