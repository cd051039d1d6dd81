"""Train the demo model's VQVAE: `python -m nextscale.demo.train_tokenizer --data DIR --out DIR --minutes 5`.

On several GPUs: `torchrun --standalone --nproc-per-node 2 -m nextscale.demo.train_tokenizer ...`.

A run may be cut at any time: the same command goes on from the last checkpoint. `vae.safetensors` in the output folder
always holds the averaged weights of the last validation.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale.demo.photographs import Augmenter, Photographs, epochs, to_float
from nextscale.demo.stage_resampling import Quantized, StageResampling
from nextscale.demo.training import (
    AveragedWeights,
    Clock,
    JsonLines,
    Workers,
    full_precision,
    learning_rate_factor,
    load_checkpoint,
    log,
    save_checkpoint,
    set_up,
)
from nextscale.demo.weights import save_weights
from nextscale.models.var.vqvae import VQVAE, VQVAEConfig

DEMO_VQVAE = VQVAEConfig(ch=64, ch_mult=(1, 2, 2), num_res_blocks=2)
TINY_VQVAE = VQVAEConfig(ch=32, ch_mult=(1, 1, 1), num_res_blocks=1, vocab_size=64)
REVIVE_UNTIL = 0.7  # share of the run after which the codebook is left to settle
RARE = 0.01  # an entry used less than this share of the mean is dead


def edges(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of neighbouring pixels, down and across."""
    return x[:, :, 1:] - x[:, :, :-1], x[:, :, :, 1:] - x[:, :, :, :-1]


def reconstruction_loss(output: Tensor, images: Tensor, edge_weight: float = 0.25) -> Tensor:
    """L1 + 4 L2 on pixels (both weigh about the same at 25 dB), and a light L1 on edges for sharpness."""
    edge = sum(F.l1_loss(a, b) for a, b in zip(edges(output), edges(images), strict=True))
    return F.l1_loss(output, images) + 4 * F.mse_loss(output, images) + edge_weight * edge


class Codebook:
    """Keeps every entry of the codebook in use: dead ones are moved onto vectors that lack a near entry."""

    def __init__(self, weight: Tensor, optimizer: torch.optim.Optimizer, average: Tensor, workers: Workers) -> None:
        self.workers = workers
        self.weight, self.optimizer, self.average = weight, optimizer, average
        self.hits = torch.zeros(len(weight), device=weight.device)

    @torch.no_grad()
    def observe(self, hits: Tensor) -> None:
        self.workers.average([hits])
        self.hits.lerp_(hits, 0.02)

    @torch.no_grad()
    def replace(self, entries: Tensor, residuals: Tensor) -> None:
        """Put random residuals in the place of `entries`, and forget what optimizer and average know of them."""
        chosen = torch.randint(len(residuals), (len(entries),), device=residuals.device)
        self.weight[entries] = residuals[chosen]
        self.workers.share(self.weight.data)
        self.average[entries] = self.weight[entries]
        self.hits[entries] = self.hits.mean()
        for moment in ("exp_avg", "exp_avg_sq"):
            if moment in self.optimizer.state[self.weight]:
                self.optimizer.state[self.weight][moment][entries] = 0

    def revive(self, residuals: Tensor) -> int:
        dead = (self.hits < RARE * self.hits.mean()).nonzero()[:, 0]
        self.replace(dead, residuals)
        return len(dead)


@torch.no_grad()
def psnr(vqvae: VQVAE, images: Tensor, batch: int = 250) -> Tensor:
    """PSNR of each uint8 image after encoding, quantizing and decoding in float32: [N], dB."""
    values = []
    with full_precision():
        for chunk in images.split(batch):
            output = vqvae.decode_tokens(vqvae.encode(to_float(chunk)))
            values.append(psnr_of(output, chunk.float()))
    return torch.cat(values)


def psnr_of(output: Tensor, pixels: Tensor) -> Tensor:
    """PSNR of each picture in [-1, 1], in whole steps of 1/255, to pixels in [0, 255]: [N], dB."""
    mse = (((output + 1) * 127.5).round() - pixels).square().flatten(1).mean(1)
    return 10 * torch.log10(255**2 / mse.clamp_min(1e-3))


@click.command(context_settings={"show_default": True})
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--minutes", default=5.0, help="Training time, over all resumed parts.")
@click.option("--steps", type=int, default=None, help="Stop after this many, over all resumed parts.")
@click.option("--batch", default=256, help="Photographs a step and GPU.")
@click.option("--lr", default=6e-4)
@click.option("--vq-weight", default=0.5)
@click.option("--validate-every", default=500, help="Steps.")
@click.option("--seed", default=0)
@click.option("--compile/--no-compile", "compiled", default=True)
@click.option("--channels-last/--no-channels-last", default=True)
@click.option("--limit", type=int, default=None, help="Keep about this many photographs (to try the program).")
@click.option("--tiny", is_flag=True, help="A very small model (to try the program).")
def main(
    data: Path,
    out: Path,
    minutes: float,
    steps: int | None,
    batch: int,
    lr: float,
    vq_weight: float,
    validate_every: int,
    seed: int,
    compiled: bool,
    channels_last: bool,
    limit: int | None,
    tiny: bool,
) -> None:
    workers = set_up(seed)
    device = workers.device
    out.mkdir(parents=True, exist_ok=True)
    photographs = Photographs.load(data, limit=limit)
    log.info("%d training, %d validation photographs", len(photographs.train), len(photographs.val))
    augment, val = Augmenter(photographs.train.to(device)), photographs.val.to(device)
    some_val = val[:: max(1, len(val) // 2000)]

    config = TINY_VQVAE if tiny else DEMO_VQVAE
    vqvae = VQVAE(config).to(device)
    if channels_last:
        for parameter in vqvae.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    resampling = StageResampling(vqvae.quantize).to(device)
    optimizer = torch.optim.AdamW(
        vqvae.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=device.type == "cuda"
    )
    average = AveragedWeights(vqvae, 0.999)
    (entry,) = (i for i, p in enumerate(average.params) if p is vqvae.quantize.embedding.weight)
    codebook = Codebook(vqvae.quantize.embedding.weight, optimizer, average.average[entry], workers)
    clock, step = Clock(minutes * 60), 0
    checkpoint = out / "tokenizer.ckpt"
    if checkpoint.exists():
        state = load_checkpoint(checkpoint, device)
        vqvae.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average.load_state_dict(state["average"])
        codebook.hits.copy_(state["hits"])
        clock.spent, step = state["elapsed"], state["step"]
        log.info("resumed at step %d, %.0f s", step, clock.spent)

    def encode(images: Tensor) -> Tensor:
        return vqvae.features(images)

    def decode(f_hat: Tensor, images: Tensor) -> Tensor:
        return reconstruction_loss(vqvae.decoder(vqvae.post_quant_conv(f_hat)).float(), images)

    if compiled:
        encode, decode = torch.compile(encode, dynamic=False), torch.compile(decode, dynamic=False)
    autocast = torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()

    def losses(images: Tensor) -> tuple[Tensor, Quantized]:
        with autocast:
            f = encode(images)
        quantized = resampling.quantize(f.float())
        with autocast:
            return decode(quantized.f_hat, images), quantized

    lines = JsonLines(out / "tokenizer.jsonl")

    def validate() -> None:
        with average.in_place():
            values = psnr(vqvae, some_val)
            save_weights(vqvae, out / "vae.safetensors")
        used = int((codebook.hits > RARE * codebook.hits.mean()).sum())
        lines.write(step=step, seconds=clock.elapsed, val_psnr=float(values.mean()), entries_used=used)
        save_checkpoint(
            checkpoint,
            {
                "model": vqvae.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": average.state_dict(),
                "hits": codebook.hits,
                "elapsed": clock.elapsed,
                "step": step,
            },
        )

    generator = torch.Generator(device).manual_seed(seed + step + 1_000_003 * workers.rank)
    sums, revived, progress = torch.zeros(3, device=device), 0, clock.progress
    for indices in epochs(len(photographs.train), batch, generator, device):
        if step % 10 == 0:
            progress = workers.agree(clock.progress)
        if progress >= 1 or step == steps:
            break
        images = augment(indices, generator)
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        if step == 0:
            with torch.no_grad():
                codebook.replace(torch.arange(config.vocab_size, device=device), losses(images)[1].residuals)
        factor = learning_rate_factor(progress, step, warmup_steps=300, decay_from=0.2)
        for group in optimizer.param_groups:
            group["lr"] = lr * factor
        reconstruction, quantized = losses(images)
        (reconstruction + vq_weight * quantized.loss).backward()
        workers.average_gradients(vqvae)
        norm = torch.nn.utils.clip_grad_norm_(vqvae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update()
        codebook.observe(quantized.hits)
        sums += torch.stack((reconstruction.detach(), quantized.loss.detach(), norm))
        step += 1
        clock.start()
        if progress < REVIVE_UNTIL and step % (20 if step < 500 else 100) == 0:
            revived += codebook.revive(quantized.residuals)
        if step % 100 == 0 and workers.first:
            reconstruction_mean, vq_mean, norm_mean = (sums / 100).tolist()
            lines.write(
                step=step,
                seconds=clock.elapsed,
                reconstruction=reconstruction_mean,
                vq=vq_mean,
                grad_norm=norm_mean,
                revived=revived,
                lr=lr * factor,
            )
            sums.zero_()
            revived = 0
        if step % validate_every == 0 and workers.first:
            validate()
    if workers.first:
        validate()
    workers.close()


if __name__ == "__main__":
    main()
