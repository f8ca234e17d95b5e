"""Train the demo checkpoint: VAE, then text encoder and UNet, on procedurally painted scenes.

    python models/train_demo.py --work models/training --out models/demo

Stages: render scenes, train the VAE, encode the scenes and their masked copies once, train UNet and text
encoder on the latents, write a diffusers checkpoint. Each stage leaves its result in --work and is skipped when
that is there; within a stage a checkpoint is written every few minutes and picked up again after a kill.
Runs on two CPU cores in a few hours with bfloat16 autocast, and on a GPU when there is one. With --start, the VAE of
another run is kept, and text encoder and UNet go on from its weights.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionInpaintPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import scenes

SIZE = 128
CELL = 4  # pixels per latent cell along a side: 8 as in SD2 would leave fish of 3 cells
CHECKPOINT_EVERY = 100
TEXT_WIDTH = 160
NULL = ""
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

VAE_CONFIG = {
    "block_out_channels": (32, 64, 128),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 16,
    "sample_size": SIZE,
}
UNET_CONFIG = {
    "sample_size": SIZE // CELL,
    "in_channels": 9,
    "out_channels": 4,
    "block_out_channels": (64, 128, 192),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (2, 4, 6),  # as in SD2 this is the number of heads
    "cross_attention_dim": TEXT_WIDTH,
    "use_linear_projection": True,
}
SCHEDULER_CONFIG = {
    "beta_start": 0.00085,
    # SD2's 0.012 leaves 7% of the picture at the last timestep: averaged over 32x32 cells that gives away how bright
    # it is, which the pure noise that sampling starts from then gets wrong (Lin et al. 2024, arXiv 2305.08891)
    "beta_end": 0.03,
    "timestep_spacing": "trailing",
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "v_prediction",
}


def render_scenes(count: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """`count` pictures of distinct worlds, (count, SIZE, SIZE, 3) uint8, and their captions."""
    rng = np.random.default_rng(seed)
    kinds = list(scenes.SCENES)
    jobs = [(kinds[i % 4], i, scenes.random_window(rng), SIZE) for i in range(count)]
    pictures = np.empty((count, SIZE, SIZE, 3), np.uint8)
    captions = []
    with multiprocessing.Pool() as pool:
        for i, (picture, caption) in enumerate(pool.starmap(scenes.render, jobs, chunksize=100)):
            pictures[i] = picture
            captions.append(caption)
    return pictures, captions


def as_input(pictures: np.ndarray) -> torch.Tensor:
    """uint8 (n, h, w, 3) to float (n, 3, h, w) in -1..1."""
    x = torch.from_numpy(np.ascontiguousarray(pictures)).to(DEVICE).permute(0, 3, 1, 2)
    return x.float().div_(127.5).sub_(1).contiguous(memory_format=torch.channels_last)


def random_mask(rng: np.random.Generator) -> np.ndarray:
    """What to paint, (SIZE, SIZE) bool: 65% zoom borders, 15% one side, 12% free boxes, 8% everything."""
    mask = np.zeros((SIZE, SIZE), bool)
    draw = rng.random()
    if draw < 0.65:
        keep = round(SIZE * rng.uniform(0.35, 0.92) / 2) * 2
        a = (SIZE - keep) // 2
        mask[:] = True
        mask[a : a + keep, a : a + keep] = False
    elif draw < 0.80:
        cut = int(rng.integers(SIZE // 5, SIZE * 4 // 5))
        view = np.rot90(mask, int(rng.integers(4)))
        view[:cut] = True
    elif draw < 0.92:
        for _ in range(int(rng.integers(1, 4))):
            h, w = rng.integers(SIZE // 6, SIZE * 2 // 3, 2)
            y, x = rng.integers(0, SIZE - h), rng.integers(0, SIZE - w)
            mask[y : y + h, x : x + w] = True
    else:
        mask[:] = True
    return mask


def fewer_words(caption: str, rng: np.random.Generator) -> str:
    """Half of the captions as they are, the others with words left out, so that short prompts work too."""
    if rng.random() < 0.5:
        return caption
    return " ".join(word for word in caption.split() if rng.random() < 0.7)


def make_tokenizer(captions: list[str], folder: Path) -> CLIPTokenizer:
    """A byte-level BPE of CLIP's kind: 256 bytes, 256 bytes that end a word, merges, two special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    alphabet = ["!", *[c for c in alphabet if c != "!"]]  # "!" is token 0 and pads, as in SD2
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=600, end_of_word_suffix="</w>", initial_alphabet=alphabet)
    bpe.train_from_iterator(captions, trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    tokens = [*alphabet, *[c + "</w>" for c in alphabet], *dict.fromkeys("".join(pair) for pair in merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)}, merges=merges, pad_token="!", model_max_length=77
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A CLIP text model of 1.4M parameters."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=4,
            num_attention_heads=5,
            max_position_embeddings=77,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


Parts = tuple[CLIPTokenizer, CLIPTextModel, AutoencoderKL, UNet2DConditionModel]


def fresh_parts(captions: list[str], work: Path) -> Parts:
    """Untrained modules, and a tokenizer for `captions`."""
    tokenizer = make_tokenizer(captions, work / "tokenizer")
    vae = AutoencoderKL(**VAE_CONFIG).to(DEVICE, memory_format=torch.channels_last)
    torch.nn.init.zeros_(vae.quant_conv.weight.data[4:])  # begin with hardly any noise in the latents: it is learnt
    torch.nn.init.constant_(vae.quant_conv.bias.data[4:], -8.0)  # an order of magnitude faster from there
    return tokenizer, make_text_encoder(tokenizer).to(DEVICE), vae, UNet2DConditionModel(**UNET_CONFIG).to(DEVICE)


def parts_of(checkpoint: Path) -> Parts:
    """The tokenizer and the modules of a checkpoint that an earlier run wrote."""
    pipe = StableDiffusionInpaintPipeline.from_pretrained(checkpoint, torch_dtype=torch.float32, safety_checker=None)
    pipe.vae.to(DEVICE, memory_format=torch.channels_last)
    for model in (pipe.vae, pipe.unet):
        model.register_to_config(_name_or_path="")  # where it lay is nobody's business
    return pipe.tokenizer, pipe.text_encoder.to(DEVICE).train(), pipe.vae, pipe.unet.to(DEVICE).train()


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 200 steps, then constant, then linear decay to 2% over the last fifth."""
    decay = min(1.0, 0.02 + 0.98 * (steps - step) / (0.2 * steps))
    return peak * min(1.0, (step + 1) / 200) * decay


class Run:
    """One resumable training run: modules, optimizer, averaged weights and loss curve, saved as they go."""

    def __init__(self, name: str, modules: torch.nn.Module, steps: int, peak: float, work: Path) -> None:
        self.name, self.modules, self.steps, self.peak = name, modules, steps, peak
        self.file = work / f"{name}.checkpoint.pt"
        self.optimizer = torch.optim.AdamW(modules.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=0.01)
        self.average = {k: v.detach().clone() for k, v in modules.state_dict().items()}
        self.step, self.seconds, self.curve = 0, 0.0, []
        self.starts: list[dict[str, int]] = []  # where each start of the script began, and where it was to end
        if self.file.exists():
            state = torch.load(self.file, map_location=DEVICE, weights_only=True)
            modules.load_state_dict(state["modules"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.average, self.step = state["average"], state["step"]
            self.seconds, self.curve = state["seconds"], state["curve"]
            self.starts = state.get("starts", [])
            print(f"{name}: resumed at step {self.step}", flush=True)
        self.starts = [*self.starts, {"from_step": self.step, "to_step": steps}]

    def __iter__(self) -> Iterator[torch.Generator]:
        """Yield a generator seeded by the step, so that a resumed run draws what an unbroken one would."""
        while self.step < self.steps:
            self.started = time.perf_counter()
            yield torch.Generator().manual_seed(1000003 * len(self.name) + self.step)

    def update(self, loss: torch.Tensor) -> None:
        """One optimizer step on `loss`, with averaging, logging and saving."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.steps, self.peak)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
        self.optimizer.step()
        keep = min(0.999, (1 + self.step) / (10 + self.step))
        for key, value in self.modules.state_dict().items():
            self.average[key].lerp_(value.to(self.average[key].dtype), 1 - keep) if value.is_floating_point() else None
        self.step += 1
        self.seconds += time.perf_counter() - self.started
        self.curve.append(round(float(loss.detach()), 5))
        if self.step % 50 == 0:
            recent = float(np.mean(self.curve[-50:]))
            print(
                f"{self.name} {self.step}/{self.steps} loss {recent:.4f} {self.seconds / 60:.1f} min",
                flush=True,
            )
        if self.step % CHECKPOINT_EVERY == 0 or self.step == self.steps:
            self.save()

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        state = {
            "modules": self.modules.state_dict(), "optimizer": self.optimizer.state_dict(), "average": self.average,
            "step": self.step, "seconds": self.seconds, "curve": self.curve, "starts": self.starts,
        }  # fmt: skip
        partial = self.file.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.file)

    def finish(self) -> dict[str, object]:
        """Load the averaged weights; the summary that is committed with them."""
        self.modules.load_state_dict(self.average)
        means = [round(float(np.mean(self.curve[i : i + 50])), 5) for i in range(0, len(self.curve), 50)]
        return {
            "steps": self.steps,
            "seconds": round(self.seconds),
            "starts": self.starts,
            "loss_every_50_steps": means,
        }


def train_vae(vae: AutoencoderKL, pictures: np.ndarray, steps: int, work: Path) -> dict[str, object]:
    """Squared error (small objects count), absolute error (flat areas do) and a faint KL; mostly on crops."""
    run = Run("vae", vae, steps, 1e-3, work)
    for generator in run:
        whole = run.step % 8 == 0  # an eighth of the batches are whole pictures, so that attention sees them
        batch, crop = (6, SIZE) if whole else (20, SIZE // 2)
        index = torch.randint(len(pictures), (batch,), generator=generator)
        dy, dx = torch.randint(SIZE - crop + 1, (2,), generator=generator).tolist()
        x = as_input(pictures[index.numpy(), dy : dy + crop, dx : dx + crop])
        with torch.autocast(DEVICE.type, torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            z = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator).to(DEVICE)
            y = vae.decode(z).sample
        y = y.float()
        kl = posterior.kl().float().mean()
        run.update(8 * functional.mse_loss(y, x) + functional.l1_loss(y, x) + 1e-6 * kl)
    return run.finish()


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: np.ndarray, masks_each: int, file: Path) -> None:
    """Latents of every picture, and `masks_each` masks with the latents of the masked picture, to `file`."""
    rng = np.random.default_rng(77)
    latents, masked, masks = [], [], []

    def means(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            return vae.encode(x).latent_dist.mean.float().cpu()

    for start in range(0, len(pictures), 64):
        x = as_input(pictures[start : start + 64])
        latents.append(means(x))
        for _ in range(masks_each):
            mask = torch.from_numpy(np.stack([random_mask(rng) for _ in range(len(x))]))[:, None].to(DEVICE)
            masked.append(means(x.masked_fill(mask, 0.0)))
            masks.append(functional.max_pool2d(mask.float(), CELL).to(torch.uint8).cpu())
    scale = float(1 / torch.cat(latents).std())
    partial = file.with_suffix(".partial")
    torch.save({"latents": torch.cat(latents), "masked": masked, "masks": masks, "scale": scale}, partial)
    partial.replace(file)


def train_unet(
    unet: UNet2DConditionModel, text: CLIPTextModel, tokenizer: CLIPTokenizer, data: dict, captions: list[str],
    steps: int, batch: int, work: Path, compiled: bool,
) -> dict[str, object]:  # fmt: skip
    """Velocity prediction (Salimans and Ho 2022, eq. 11) on masked latents, 10% of the captions dropped."""
    run = Run("unet", torch.nn.ModuleDict({"unet": unet, "text": text}), steps, 5e-4, work)
    forward = torch.compile(unet) if compiled else unet
    scale, latents = data["scale"], data["latents"]
    masks_each = len(data["masked"]) // -(-len(latents) // 64)
    alphas = DDIMScheduler(**SCHEDULER_CONFIG).alphas_cumprod.to(DEVICE)
    for generator in run:
        rng = np.random.default_rng(run.step)
        index = torch.randint(len(latents), (batch,), generator=generator)
        variant = torch.randint(masks_each, (batch,), generator=generator)
        where = [(int(i) // 64 * masks_each + int(v), int(i) % 64) for i, v in zip(index, variant, strict=True)]
        clean = latents[index].to(DEVICE) * scale
        masked = torch.stack([data["masked"][a][b] for a, b in where]).to(DEVICE) * scale
        mask = torch.stack([data["masks"][a][b] for a, b in where]).to(DEVICE).float()
        words = [NULL if rng.random() < 0.1 else fewer_words(captions[int(i)], rng) for i in index]
        ids = tokenizer(words, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(DEVICE)
        t = torch.randint(1000, (batch,), generator=generator).to(DEVICE)
        noise = torch.randn(clean.shape, generator=generator).to(DEVICE)
        signal, spread = alphas[t].sqrt()[:, None, None, None], (1 - alphas[t]).sqrt()[:, None, None, None]
        noisy, velocity = signal * clean + spread * noise, signal * noise - spread * clean
        with torch.autocast(DEVICE.type, torch.bfloat16):
            context = text(ids).last_hidden_state
            out = forward(torch.cat([noisy, mask, masked], 1), t, context).sample
        run.update(functional.mse_loss(out.float(), velocity))
    return run.finish()


def main() -> None:
    """Run the stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("models/training"))
    parser.add_argument("--out", type=Path, default=Path("models/demo"))
    parser.add_argument("--start", type=Path, help="a checkpoint of this script's: keep its VAE, go on from the rest")
    parser.add_argument("--scenes", type=int, default=20000)
    parser.add_argument("--masks-each", type=int, default=1)
    parser.add_argument("--vae-steps", type=int, default=1600)
    parser.add_argument("--unet-steps", type=int, default=4600)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--compile", action="store_true", help="torch.compile the UNet (needs a C++ compiler)")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    started = time.strftime("%Y-%m-%d")

    encoded, told = args.work / "latents.pt", args.work / "captions.json"
    if encoded.exists() and told.exists():  # then nothing looks at the pictures any more
        pictures, captions = np.empty((0, SIZE, SIZE, 3), np.uint8), json.loads(told.read_text())
    else:
        pictures, captions = render_scenes(args.scenes, seed=1)
        told.write_text(json.dumps(captions))
        print(f"rendered {len(pictures)} scenes, {len(set(captions))} captions", flush=True)
    tokenizer, text, vae, unet = parts_of(args.start) if args.start else fresh_parts(captions, args.work)
    log: dict[str, object] = {"date": started, "arguments": {k: str(v) for k, v in vars(args).items()}}
    log["machine"] = {"processor": platform.processor() or platform.machine(), "device": str(DEVICE),
                      "threads": torch.get_num_threads(), "torch": torch.__version__}  # fmt: skip
    log["parameters"] = {n: sum(p.numel() for p in m.parameters()) for n, m in
                         (("vae", vae), ("unet", unet), ("text_encoder", text))}  # fmt: skip
    print(log["parameters"], flush=True)

    if args.start:
        log["start"] = json.loads((args.start / "training.json").read_text())
    else:
        log["vae"] = train_vae(vae, pictures, args.vae_steps, args.work)
    if not encoded.exists():
        encode(vae, pictures, args.masks_each, encoded)
    data = torch.load(encoded, weights_only=True)
    vae.register_to_config(scaling_factor=data["scale"])
    print(f"latents encoded, scaling factor {data['scale']:.4f}", flush=True)
    log["unet"] = train_unet(
        unet, text, tokenizer, data, captions, args.unet_steps, args.batch, args.work, args.compile
    )

    StableDiffusionInpaintPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=DDIMScheduler(**SCHEDULER_CONFIG),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).to("cpu", torch.float16).save_pretrained(args.out, safe_serialization=True)  # fmt: skip
    (args.out / "training.json").write_text(json.dumps(log, indent=1) + "\n")


if __name__ == "__main__":
    main()
