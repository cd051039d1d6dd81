"""Train the demo model's VAR: `python -m nextscale.demo.train_transformer --data DIR --out DIR --minutes 8`.

On several GPUs: `torchrun --standalone --nproc-per-node 2 -m nextscale.demo.train_transformer ...`.

Needs `vae.safetensors` in the output folder (`train_tokenizer` makes it). All training photographs are turned into
token maps once, each in several mirrored and shifted variants. A run may be cut at any time: the same command goes on
from the last checkpoint. `var.safetensors` always holds the averaged weights of the best validation loss so far.
`--init` goes on from published weights instead, with a new optimizer.
"""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.demo.photographs import Augmenter, Photographs, epochs, to_float
from nextscale.demo.stage_resampling import StageResampling
from nextscale.demo.training import (
    AveragedWeights,
    Clock,
    JsonLines,
    full_precision,
    learning_rate_factor,
    load_checkpoint,
    log,
    save_checkpoint,
    set_up,
)
from nextscale.demo.transformer_training import attend_by_stage, draw_small_weights
from nextscale.demo.weights import save_weights
from nextscale.models.transformer_parts import KVCache
from nextscale.models.var.checkpoint import load_var, load_vqvae
from nextscale.models.var.transformer import VAR, SelfAttention, VARConfig
from nextscale.models.var.vqvae import VQVAE

DEMO_VAR = VARConfig(num_classes=150, depth=9, embed_dim=320, num_heads=5, attn_l2_norm=True, shared_aln=True)
MASKED_STAGES = 8  # of ten; the last two, 63% of the tokens, see everything before them and need no mask


class StagewiseAttention(SelfAttention):
    """`SelfAttention` for training: the late stages' queries attend without a mask, each in a product of its own."""

    def __init__(self, config: VARConfig) -> None:
        super().__init__(config)
        ends = [*config.stage_begins[1:], config.num_tokens]
        masked = min(MASKED_STAGES, config.num_stages)
        self.bounds = [0, *ends[masked - 1 :]]

    def forward(self, x: Tensor, mask: Tensor | None, cache: KVCache | None) -> Tensor:
        assert mask is not None
        assert cache is None
        b, length, _ = x.shape
        bias = torch.cat((self.q_bias, self.zero_k_bias, self.v_bias))
        q, k, v = F.linear(x, self.mat_qkv.weight, bias).view(b, length, 3, self.num_heads, -1).unbind(2)
        if self.attn_l2_norm:
            q = F.normalize(q.float(), dim=-1) * self.query_scale().squeeze(0)[None, None, :, :, 0]
            k = F.normalize(k.float(), dim=-1)
        q, k, v = (t.to(v.dtype).transpose(1, 2) for t in (q, k, v))
        return self.proj(attend_by_stage(q, k, v, self.bounds, mask, self.scale))


VAL_BATCH = 250  # divides 7,500, so that compiled code sees one shape


def init_weights(var: VAR) -> None:
    """The official release's initialisation (`VAR.init_weights`): small, with near-zero gates."""
    c, depth = var.config.embed_dim, var.config.depth
    std = math.sqrt(1 / c / 3)
    draw_small_weights(var, std)
    nn.init.trunc_normal_(var.pos_start, std=std)
    nn.init.trunc_normal_(var.pos_1LC, std=std)
    parameters = dict(var.named_parameters())
    with torch.no_grad():
        var.head.weight.mul_(0.02)
        parameters["head_nm.ada_lin.1.weight"].mul_(0.5)
        for i in range(depth):
            parameters[f"blocks.{i}.attn.proj.weight"].div_(math.sqrt(2 * depth))
            parameters[f"blocks.{i}.ffn.fc2.weight"].div_(math.sqrt(2 * depth))
            if var.config.shared_aln:
                gates, rest = parameters[f"blocks.{i}.ada_gss"].split((2, 4), dim=2)
            else:
                gates, rest = parameters[f"blocks.{i}.ada_lin.1.weight"].split((2 * c, 4 * c))
            gates.mul_(1e-5)
            rest.mul_(0.5)


def make_optimizers(var: VAR, lr: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for the rest; both take the same learning rate (Muon's steps are rescaled
    to AdamW's size)."""
    matrices = [p for block in var.blocks for name, p in block.named_parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in var.parameters() if id(p) not in chosen]
    decayed = [p for p in rest if p.ndim == 2 and p is not var.class_emb.weight and p is not var.lvl_embed.weight]
    kept = {id(p) for p in decayed}
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": [p for p in rest if id(p) not in kept], "weight_decay": 0.0},
    ]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=matrices[0].is_cuda),
    ]


@torch.no_grad()
def tokenize(vqvae: VQVAE, images: Tensor) -> Tensor:
    """float32 [B, 3, H, W] in [-1, 1] to all stages' tokens, int16 [B, L]."""
    return torch.cat(vqvae.encode(images), dim=1).to(torch.int16)


def tokenize_variants(
    vqvae: VQVAE, photographs: Photographs, variants: int, device: torch.device, generator: torch.Generator
) -> Tensor:
    """Each training photograph as `variants` random mirrored, shifted crops: int16 [variants, N, L] on the device."""
    augment = Augmenter(photographs.train.to(device))
    count = len(photographs.train)
    tokens = torch.empty(variants, count, sum(pn * pn for pn in vqvae.config.patch_nums), dtype=torch.int16)
    tokens = tokens.to(device)
    for variant in range(variants):
        for indices in torch.arange(count, device=device).split(500):
            tokens[variant, indices] = tokenize(vqvae, augment(indices, generator))
    return tokens


@click.command(context_settings={"show_default": True})
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--minutes", default=8.0, help="Training time, over all resumed parts.")
@click.option("--steps", type=int, default=None, help="Stop after this many, over all resumed parts.")
@click.option("--batch", default=256, help="Photographs a step and GPU.")
@click.option("--lr", default=1.5e-3)
@click.option("--weight-decay", default=0.05)
@click.option("--label-dropout", default=0.1, help="Share of labels replaced by the null class, for guidance.")
@click.option("--variants", default=4, help="Mirrored and shifted variants of each photograph, on each GPU.")
@click.option("--validate-every", default=250, help="Steps.")
@click.option("--patience", default=8, help="Stop after this many validations without a better loss.")
@click.option("--seed", default=0)
@click.option("--compile/--no-compile", "compiled", default=True)
@click.option("--init", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Start from these weights.")
@click.option("--limit", type=int, default=None, help="Keep about this many photographs (to try the program).")
@click.option("--tiny", is_flag=True, help="A very small model (to try the program).")
def main(
    data: Path,
    out: Path,
    minutes: float,
    steps: int | None,
    batch: int,
    lr: float,
    weight_decay: float,
    label_dropout: float,
    variants: int,
    validate_every: int,
    patience: int,
    seed: int,
    compiled: bool,
    init: Path | None,
    limit: int | None,
    tiny: bool,
) -> None:
    workers = set_up(seed)
    device = workers.device
    vqvae = load_vqvae(out / "vae.safetensors", patch_nums=DEMO_VAR.patch_nums).to(device)
    photographs = Photographs.load(data, limit=limit)
    generator = torch.Generator(device).manual_seed(seed + 1_000_003 * workers.rank)
    with full_precision() if device.type == "cpu" else contextlib.nullcontext():
        tokens = tokenize_variants(vqvae, photographs, variants, device, generator)
    labels = photographs.train_labels.to(device)
    known = photographs.val_labels >= 0
    with full_precision():
        val_tokens = torch.cat([tokenize(vqvae, to_float(c.to(device))) for c in photographs.val[known].split(500)])
    val_labels = photographs.val_labels[known].to(device)
    log.info("tokens of %d x %d training, %d validation photographs", *tokens.shape[:2], len(val_tokens))

    num_classes = len(photographs.class_names)
    config = DEMO_VAR
    if tiny:
        config = VARConfig(num_classes, 2, 64, 2, shared_aln=True, vocab_size=vqvae.config.vocab_size)
    var = VAR(config)
    for block in var.blocks:
        block.attn = StagewiseAttention(config)
    init_weights(var)
    if init is not None:
        var.load_state_dict(load_var(init).state_dict())
    var = var.to(device)
    resampling = StageResampling(vqvae.quantize).to(device)
    optimizers = make_optimizers(var, lr, weight_decay)
    average = AveragedWeights(var, 0.999)
    clock, step, best, worse = Clock(minutes * 60), 0, math.inf, 0
    checkpoint = out / "transformer.ckpt"
    if checkpoint.exists():
        state = load_checkpoint(checkpoint, device)
        var.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        average.load_state_dict(state["average"])
        clock.spent, step, best, worse = state["elapsed"], state["step"], state["best"], state["worse"]
        log.info("resumed at step %d, %.0f s", step, clock.spent)

    def token_losses(labels: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of every token, [B, L]."""
        logits = var(labels, inputs)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none").view(targets.shape)

    if compiled:
        token_losses = torch.compile(token_losses, dynamic=False)
    autocast = torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()
    lines = JsonLines(out / "transformer.jsonl")

    @torch.no_grad()
    def validation_loss() -> tuple[float, list[float]]:
        """Mean over all tokens, and over each stage's."""
        total = torch.zeros(config.num_tokens, device=device)
        for chunk, chunk_labels in zip(val_tokens.split(VAL_BATCH), val_labels.split(VAL_BATCH), strict=True):
            targets = chunk.long()
            inputs = resampling.teacher_forced_inputs(targets)
            with autocast:
                total += token_losses(chunk_labels, inputs, targets).sum(0)
        total /= len(val_tokens)
        stages = [float(s.mean()) for s in total.split([pn * pn for pn in config.patch_nums])]
        return float(total.mean()), stages

    def validate() -> None:
        nonlocal best, worse
        with average.in_place():
            loss, stages = validation_loss()
            if loss < best:
                save_weights(var, out / "var.safetensors")
        best, worse = (loss, 0) if loss < best else (best, worse + 1)
        lines.write(step=step, seconds=clock.elapsed, val_loss=loss, best=best, val_loss_of_stages=stages)
        save_checkpoint(
            checkpoint,
            {
                "model": var.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "average": average.state_dict(),
                "elapsed": clock.elapsed,
                "step": step,
                "best": best,
                "worse": worse,
            },
        )

    generator.manual_seed(seed + step + 1_000_003 * workers.rank)
    sums, progress = torch.zeros(2, device=device), clock.progress
    for indices in epochs(len(labels), batch, generator, device):
        if step % 10 == 0:
            progress = workers.agree(1.0 if worse >= patience else clock.progress)
        if progress >= 1 or step == steps:
            break
        variant = torch.randint(variants, indices.shape, generator=generator, device=device)
        targets = tokens[variant, indices].long()
        dropped = torch.rand(indices.shape, generator=generator, device=device) < label_dropout
        batch_labels = torch.where(dropped, num_classes, labels[indices])
        inputs = resampling.teacher_forced_inputs(targets)
        factor = learning_rate_factor(progress, step, warmup_steps=300, decay_from=0.3)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * factor
        with autocast:
            loss = token_losses(batch_labels, inputs, targets).mean()
        loss.backward()
        workers.average_gradients(var)
        norm = nn.utils.clip_grad_norm_(var.parameters(), 2.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        average.update()
        sums += torch.stack((loss.detach(), norm))
        step += 1
        clock.start()
        if step % 50 == 0 and workers.first:
            train_loss, norm_mean = (sums / 50).tolist()
            lines.write(step=step, seconds=clock.elapsed, train_loss=train_loss, grad_norm=norm_mean, lr=lr * factor)
            sums.zero_()
        if step % validate_every == 0 and workers.first:
            validate()
    if workers.first:
        validate()
        lines.write(final=1, step=step, seconds=clock.elapsed, best=best, val_images=len(val_tokens))
    workers.close()


if __name__ == "__main__":
    main()
