"""The commands that make files: sample, encode, decode."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from odesampler.cli.common import (
    BATCH,
    DEVICE,
    GUIDANCE,
    HOW,
    LABEL,
    MODEL,
    NEGATIVE,
    PATHS,
    PROMPT,
    Folder,
    check_arrived,
    cond_of,
    cost,
    images_of,
    loaded_model,
    options,
    out_option,
    shown,
)
from odesampler.cli.shards import SHARD, given, local, refuse_unused, report_run

if TYPE_CHECKING:
    from odesampler.room import AnyBatch


@click.command()
@click.option("--num", type=int, default=16, show_default=True, help="How many images.")
@options(MODEL, *HOW)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the first image; the next has seed + 1.")
@click.option("--noise", default="independent", show_default=True, help="Of stochastic solvers; or brownian.")
@click.option("--clip", "clip_denoised", type=float, help="Clamp the predicted image to -CLIP .. CLIP.")
@options(LABEL, PROMPT, NEGATIVE, GUIDANCE, BATCH, DEVICE)
@click.option("--kind", type=click.Choice(["safetensors", "png"]), help="Of files in a folder.  [default: safetensors]")
@options(SHARD, out_option("samples.png", "Picture to write; or a folder, for any number of images.", folder=True))
def sample(
    num: int,
    model: str,
    device: str,
    label: str | None,
    prompt: str | None,
    negative_prompt: str | None,
    kind: str | None,
    shard_size: int | None,
    out: Path | Folder,
    **how: Any,
) -> None:
    """Draw images from a model.

    Into a folder any number, shard after shard: started again it goes on, and torchrun or Slurm may start many.
    """
    import odesampler as ods

    loaded = loaded_model(model, local(device), prompt=prompt, negative_prompt=negative_prompt)
    cond = cond_of(loaded, label)
    if isinstance(out, Folder):
        files = given(kind=kind, shard_size=shard_size)
        report_run(ods.sample_many(loaded, num, out.path, cond=cond, progress=shown(), **files, **how))
        return
    refuse_unused(out, kind=kind, shard_size=shard_size)
    found = ods.sample(loaded, num, cond=cond, progress=shown(), **how)
    check_arrived(found.x)
    ods.images.save_grid(found.images, out)
    click.echo(f"{num} images, {cost(found.nfe)}, {found.seconds:.2f} s: {out}")


@click.command()
@options(PATHS, MODEL, *HOW)
@click.option("--convention", help="How to step upward where steps cannot be undone: source, target or implicit.")
@options(LABEL, PROMPT, NEGATIVE, GUIDANCE, BATCH, DEVICE)
@click.option("--exact", help="bits or residual: so that decode returns the very pictures.")
@click.option("--micro-batch", type=int, help="With --exact: images in a call of the network; 1 suits any batch.")
@click.option("--num", type=int, default=8, show_default=True, help="Held-out images, where no pictures are given.")
@options(SHARD, out_option("latents.safetensors", "File to write; or a folder, for any number.", folder=True))
def encode(
    paths: tuple[str, ...],
    model: str,
    device: str,
    label: str | None,
    prompt: str | None,
    negative_prompt: str | None,
    num: int,
    shard_size: int | None,
    out: Path | Folder,
    **how: Any,
) -> None:
    """Turn pictures (PNG, JPEG, folders of them) into latents; without any, held-out images of the model.

    Into a folder any number, shard after shard, as `sample` does; pictures that cannot be read are skipped.
    """
    import odesampler as ods

    loaded = loaded_model(model, local(device), prompt=prompt, negative_prompt=negative_prompt)
    if isinstance(out, Folder):
        if not paths:
            raise click.BadParameter("a folder is for pictures of your own: name them, or folders of them")
        files = given(shard_size=shard_size)
        cond = cond_of(loaded, label)
        report_run(ods.encode_many(loaded, paths, out.path, cond=cond, progress=shown(), **files, **how))
        return
    refuse_unused(out, shard_size=shard_size)
    images = images_of(loaded, paths, num, whole=how["exact"] is not None)
    latent = ods.encode(loaded, images, cond=cond_of(loaded, label), progress=shown(), **how)
    check_arrived(latent.x)
    latent.save(out)
    click.echo(f"{len(latent)} latents, {cost(latent.nfe)}, standard deviation {latent.x.std():.3f}: {out}")


@click.command()
@click.argument("latent", metavar="LATENTS")
@options(MODEL, BATCH, DEVICE)
@click.option("--insist", is_flag=True, help="Decode although the latents were made with another model, or elsewhere.")
@click.option("--each", type=click.Path(file_okay=False), help="A folder for the pictures one by one, besides.")
@out_option("decoded.png", "Picture to write.")
def decode(
    latent: str, model: str, device: str, insist: bool, max_batch: AnyBatch, each: str | None, out: Path
) -> None:
    """Turn latents back into pictures; the file knows how they were made."""
    import odesampler as ods

    made = ods.Latent.load(latent)
    found = ods.decode(loaded_model(model, device), made, insist=insist, max_batch=max_batch, progress=shown())
    ods.images.save_grid(found.images, out)
    if each is not None:
        ods.images.save_each(found.images, each)
    click.echo(f"{len(made)} images, {cost(found.nfe)}, {found.seconds:.2f} s: {out}")
