"""The command line: the main jobs end to end, and every mistake as one line with exit code 2 and nothing written."""

import os
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import odesampler as ods
from odesampler.cli import main
from odesampler.cli.common import separated


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    import warnings

    with warnings.catch_warnings(), pytest.raises(SystemExit) as stopped:
        main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return stopped.value.code, out, err


def refused(capsys, *arguments: str) -> str:
    """Run what must be refused: exit code 2, one line, no new file. Returns the line."""
    before = sorted(os.listdir())
    code, _, err = run(capsys, *arguments)
    assert code == 2, err
    assert err.startswith("odesampler: ")
    assert len(err.splitlines()) == 1, err
    assert sorted(os.listdir()) == before
    return err


def test_sample_writes_a_picture_that_equals_the_librarys(capsys):
    code, out, _ = run(capsys, "sample", "--num", 4, "--steps", 5, "--seed", 3, "--label", "1,2,3,4", "--out", "s.png")
    assert code == 0
    assert "5 evaluations each" in out
    x = ods.sample(ods.load("digits"), 4, num_steps=5, seed=3, cond={"label": [1, 2, 3, 4]}).x
    drawn = torch.frombuffer(bytearray(Image.open("s.png").tobytes()), dtype=torch.uint8)
    assert torch.equal(drawn, ods.images.grid(x).flatten())


def test_encode_and_decode_bring_pictures_back(capsys):
    held_out = ods.held_out("digits").images[:2]
    for i, image in enumerate(held_out):
        Image.fromarray(ods.images.to_bytes(image)[0].numpy()).save(f"{i}.png")
    assert (
        run(capsys, "encode", "0.png", "1.png", "--solver", "reversible", "--steps", 5, "--out", "z.safetensors")[0]
        == 0
    )
    assert run(capsys, "decode", "z.safetensors", "--out", "back.png")[0] == 0
    pixels = ods.images.to_float(ods.images.to_bytes(held_out))
    expected = ods.images.grid(pixels).flatten()
    drawn = torch.frombuffer(bytearray(Image.open("back.png").tobytes()), dtype=torch.uint8)
    assert torch.equal(drawn, expected)


def test_roundtrip_prints_the_table_and_draws_the_picture(capsys):
    code, out, _ = run(capsys, "roundtrip", "--solver", "ddim", "--solver", "reversible", "--steps", 4, "--num", 2)
    assert code == 0
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.startswith(("ddim", "reversible"))}
    assert float(rows["ddim"][3]) > 1e-3 > 1e-9 > float(rows["reversible"][3])
    with Image.open("roundtrip.png") as picture:
        assert picture.size[0] > 800


def test_roundtrip_says_where_errors_come_from(capsys):
    code, out, _ = run(capsys, "roundtrip", "--num", 1, "--solver", "ddim", "--steps", 4, "--sources")
    assert code == 0
    trip = ods.round_trip(ods.load("digits"), ods.held_out("digits").images[:1], "ddim", 4).records()[0]
    assert f"{trip['rmse_median']:.2e}" in next(line for line in out.splitlines() if line.startswith("all "))
    assert re.search(r"^growth up +\d\.\d\de\+02", out, re.MULTILINE)
    assert "\nflags: lost" in out


def test_a_likelihood_of_too_few_steps_is_said_to_be_one(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("always")  # as it is outside of tests
        code, out, err = run(capsys, "likelihood", "--num", 1, "--steps", 4, "--solver", "heun")
    assert code == 0
    assert "with half the steps: take more" in out
    assert "warning" in err


def test_roundtrip_takes_a_label_for_each_picture(capsys):
    how = ["--solver", "ddim", "--steps", 2, "--num", 2, "--label", "1,2", "--guidance", 1.5, "--max-batch", 4]
    code, out, err = run(capsys, "roundtrip", *how)
    assert code == 0, err
    assert "24 images drawn" in out


def test_compare_prints_what_the_library_finds_and_writes_picture_and_table(capsys):
    how = ["--solvers", "ddim,adaptive:dopri5,ancestral(eta=0.5, sigma_hat=True)", "--steps", "3,6", "--num", 2]
    how += ["--tolerances", "0.1", "--grid", "log_snr,karras", "--label", "1,2", "--guidance", 1.5, "--seed", 4]
    code, out, err = run(capsys, "compare", *how, "--reference-steps", 20, "--max-batch", 8, "--csv", "c.csv")
    assert code == 0, err
    found = ods.compare(
        ods.load("digits"),
        ["ddim", "adaptive:dopri5", "ancestral(eta=0.5, sigma_hat=True)"],
        [3, 6],
        grid=["log_snr", "karras"],
        tolerances=0.1,
        num_samples=2,
        seed=4,
        cond={"label": [1, 2]},
        guidance_scale=1.5,
        reference_steps=20,
        max_batch=8,
    )
    assert len(found.cells) == 9
    assert out.split("shared;")[0] == found.table().split("shared;")[0]
    assert found.best_table() in out
    with open("c.csv", newline="") as file:
        assert file.read() == found.to_csv()
    with Image.open("compare.png") as picture:
        assert picture.size[0] > 800


@pytest.mark.filterwarnings("always:the smallest error found")
def test_compare_says_when_its_reference_cannot_tell(capsys):
    how = ["--solvers", "rk4", "--steps", 30, "--num", 2, "--reference-steps", 20]
    assert "odesampler: warning: the smallest error found" in run(capsys, "compare", *how)[2]


def test_likelihood_prints_what_the_library_finds_and_writes_the_table(capsys):
    how = ["--num", 2, "--label", "3,4", "--solver", "multistep", "--steps", 10, "--probes", 2, "--draws", 2]
    code, out, _ = run(
        capsys,
        *("likelihood", *how, "--divergence", "hutchinson", "--dequantise", 17, "--seed", 5, "--no-check"),
        *("--out", "l.csv"),
    )
    assert code == 0
    found = ods.log_likelihood(
        ods.load("digits"),
        ods.held_out("digits").images[:2],
        cond={"label": [3, 4]},
        solver="multistep",
        num_steps=10,
        divergence="hutchinson",
        probes=2,
        dequantise=17,
        draws=2,
        seed=5,
        check=False,
    )
    assert out == f"{found.table()}\ntable: l.csv\n"
    with open("l.csv", newline="") as file:
        assert file.read() == found.to_csv()


def test_emoji_are_drawn_by_the_name_of_their_class(capsys):
    how = ["--model", "emoji", "--num", 2, "--steps", 3, "--guidance", 2.5, "--label", "heart,face-smiling"]
    code, _, err = run(capsys, "sample", *how)
    assert code == 0, err
    with Image.open("samples.png") as picture:
        assert picture.mode == "RGB"


@pytest.mark.parametrize(
    "arguments",
    [
        ("roundtrip", "--solver", "ddim", "--steps", 2, "--num", 1),
        ("compare", "--solvers", "ddim", "--steps", "3,5", "--num", 2, "--reference-steps", 20),
        ("likelihood", "--num", 1, "--steps", 3, "--divergence", "hutchinson", "--no-check"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_what_is_measured_is_written_as_a_page_that_says_by_which_command_and_where(capsys, arguments):
    device = "cpu:0"  # the same device by another name
    code, out, err = run(capsys, *arguments, "--device", device, "--report", "the report.html")
    assert code == 0, err
    assert out.splitlines()[-1] == "report: the report.html"
    with open("the report.html") as file:
        text = file.read()
    command = " ".join(
        ["odesampler", *map(str, arguments), "--device", device, "--report", "&#x27;the report.html&#x27;"]
    )
    assert f"<dt>command</dt><dd>{command}</dd>" in text
    assert "<dt>device</dt><dd>cpu:0</dd>" in text
    numbers = out.partition("---\n")[2].splitlines()[0].split()
    assert all(f">{cell}</td>" in text for cell in numbers), "the page shows what was printed"


def test_models_and_solvers_are_listed(capsys):
    listed = run(capsys, "models")[1]
    assert all(name in listed for name in ("digits", "emoji"))
    listed = run(capsys, "solvers")[1]
    assert all(facts.name in listed for facts in ods.solvers())


MISTAKES = [
    (["sample", "--steps", "0"], "num_steps is the number of transitions"),
    (["sample", "--steps", "-3"], "num_steps is the number of transitions"),
    (["sample", "--num", "0"], "num_samples must be"),
    (["sample", "--solver", "huen"], "unknown solver 'huen'; did you mean heun"),
    (["sample", "--grid", "karas"], "unknown grid 'karas'; known:"),
    (["sample", "--model", "digit"], "unknown model 'digit'"),
    (["sample", "--device", "tpu:x"], "device 'tpu:x' cannot be used"),
    (["sample", "--label", "eleven"], "--label is a class of digits"),
    (["sample", "--label", "11"], "label 11 does not exist"),
    (["sample", "--label", "1,2"], "one value a sample"),
    (["sample", "--seed", "-1"], "a seed must be"),
    (["sample", "--steps", "5", "--rtol", "0.1"], "give one"),
    (["sample", "--out", "s.jpg"], "must end in .png"),
    (["sample", "--out", "no/where/s.png"], "cannot write no/where/s.png"),
    (["sample", "--bogus"], "No such option"),
    (["smaple"], "No such command"),
    (["encode", "nothing.png"], "no such file or folder: nothing.png"),
    (["encode", "text.png"], "cannot read text.png as a picture"),
    (["encode", "large.png"], "large.png is 9 x 8 pixels; 8 x 8 are wanted"),
    (["encode", "empty"], "no .png, .jpg, .jpeg files in folder empty"),
    (["encode", "--solver", "ddpm"], "draws noise"),
    (["decode", "nothing.safetensors"], "no such latent file"),
    (["decode", "empty"], "empty is a folder; latents are read from a file: name a file in it"),
    (["decode", "many"], "many is a folder; latents are read from a file: name many/00000.safetensors"),
    (["decode", "text.png"], "not a safetensors file"),
    (["decode", "weights.safetensors"], "not a latent"),
    (["decode", "other.safetensors"], "made with"),
    (["roundtrip", "--steps", "0"], "num_steps is the number of transitions"),
    (["roundtrip", "--solver", "nope"], "unknown solver 'nope'"),
    (["roundtrip", "--num", "0"], "--num must be 1 or more"),
    (["encode", "--num", "1000"], "digits has 360 held-out images"),
    (["encode", "deep.png"], "more than 8 bits a channel"),
    (["encode", "--solver", "adaptive:dopri5(max_steps=3)", "--num", "1"], "did not arrive, so nothing was written"),
    (["sample", "--device", "meta"], "device 'meta' cannot be used"),
    (["sample", "--steps", "100000000000000000000"], "from 1 to 1000000"),
    (["sample", "--solver", "scipy:LSODA(rtol='a')"], "rtol and atol must be finite"),
    (["sample", "--guidance", "2", "--label", "1", "--max-batch", "1"], "max_batch must be 2 or more"),
    (["compare", "--steps", "10,x"], "--steps takes whole numbers separated by commas; got '10,x'"),
    (["compare", "--steps", "10,2.5"], "--steps takes whole numbers"),
    (["compare", "--tolerances", "small"], "--tolerances takes numbers separated by commas"),
    (["compare", "--solvers", "ddim,huen"], "unknown solver 'huen'; did you mean heun"),
    (["compare", "--grid", "log_snr,karas"], "unknown grid 'karas'; known:"),
    (["compare", "--num", "0"], "num_samples must be"),
    (["compare", "--reference-steps", "7"], "must be even"),
    (["compare", "--csv", "table.txt"], "must end in .csv"),
    (["roundtrip", "--report", "page.pdf"], "must end in .html"),
    (["likelihood", "--report", "no/where.html"], "cannot write no/where.html"),
    (["compare", "--csv", "no/where.csv"], "cannot write no/where.csv"),
    (["compare", "--out", "table.csv"], "must end in .png"),
    (["compare", "--solvers", "adaptive:dopri5(max_steps=2)", "--num", "1"], "no solver came back"),
    (["likelihood", "--solver", "alf", "--steps", "5"], "not exactly invertible"),
    (["likelihood", "--dequantise", "256", "--out", "l.txt"], "must end in .csv"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[" ".join(a) for a, _ in MISTAKES])
def test_a_mistake_is_one_line_and_exit_code_2(capsys, arguments, message):
    from safetensors.torch import save_file

    with open("text.png", "w") as file:
        file.write("not a picture")
    Image.new("L", (9, 8)).save("large.png")
    Image.new("I;16", (8, 8)).save("deep.png")
    os.mkdir("empty")
    os.mkdir("many")
    for i in range(2):
        Path(f"many/0000{i}.safetensors").touch()
    save_file({"weight": torch.zeros(2)}, "weights.safetensors")
    ring = ods.exact.GaussianMixture.ring()
    ods.encode(ring.model(), ring.sample(2), num_steps=2).save("other.safetensors")
    assert message in refused(capsys, *arguments)


def test_a_folder_that_cannot_be_written_is_found_before_anything_is_computed(capsys, monkeypatch):
    monkeypatch.setattr("odesampler.zoo.models.load", None)  # would fail, were it reached
    assert "cannot write" in refused(
        capsys, "sample", "--out", "/proc/samples.png"
    )  # a file system that takes no files


def script(*arguments: str, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", *arguments], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options
    )


def test_a_full_disk_is_one_line_and_leaves_no_half_file():
    full = (
        "import resource, signal, odesampler.cli as cli;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"  # writing past the limit then fails as on a full disk
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100));"
        "cli.main(['sample', '--num', '4', '--steps', '2', '--out', 's.png'])"
    )
    with script(full) as process:
        _, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    assert len(err.splitlines()) == 1, err
    assert os.listdir() == []


def test_encode_takes_a_convention(capsys):
    for convention in ("source", "target"):
        name = f"{convention}.safetensors"
        run(capsys, "encode", "--num", 2, "--solver", "ddim", "--convention", convention, "--out", name)
    model, images = ods.load("digits"), ods.held_out("digits").images[:2]
    latent = ods.Latent.load("target.safetensors")
    assert latent.recipe.convention == "target"
    assert torch.equal(latent.x, ods.encode(model, images, solver="ddim", convention="target").x)
    assert not torch.equal(latent.x, ods.Latent.load("source.safetensors").x)
    assert "convention must be one of source, target" in refused(capsys, "encode", "--convention", "up")


def test_a_killed_encode_leaves_no_half_file():
    slow = (
        "import torch, odesampler.cli as cli, odesampler.files as files;"
        "fsync = files.os.fsync;"
        "files.os.fsync = lambda fd: (print('writing', flush=True), __import__('time').sleep(60));"
        "cli.main(['encode', '--steps', '2', '--out', 'z.safetensors'])"
    )
    with script(slow) as process:
        assert process.stdout.readline() == "writing\n"  # every byte is on its way, the name is not given yet
        process.send_signal(signal.SIGKILL)
    assert os.listdir() == []


def test_an_interrupted_command_says_so_and_writes_nothing():
    slow = (
        "import sys, odesampler.cli as cli, odesampler as ods;"
        "ods.Model.__call__ = lambda *a, **k: (print('computing', flush=True), __import__('time').sleep(60));"
        "cli.main(['sample', '--steps', '2', '--out', 's.png'])"
    )
    with script(slow) as process:
        assert process.stdout.readline() == "computing\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "odesampler: interrupted"
    assert os.listdir() == []


def test_an_error_nobody_thought_of_is_one_line_too_unless_its_traceback_is_asked_for(capsys, monkeypatch):
    monkeypatch.setattr(ods.Model, "__call__", lambda *_, **__: {}["surprise"])
    assert "KeyError: 'surprise'" in refused(capsys, "sample")
    with pytest.raises(KeyError):
        main(["--debug", "sample"])


def test_help_does_not_import_torch():
    asking = (
        "import sys, odesampler.cli as cli\n"
        "try: cli.main(['encode', '--help'])\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    with script(asking) as process:
        out, _ = process.communicate(timeout=60)
    assert out.splitlines()[-1] == "False"


def test_names_are_separated_by_the_commas_outside_of_parentheses():
    text = "singlestep(frame='data', fractions=(0.2, 0.9)), ddim,ancestral(eta=0.5)"
    assert separated(text) == ["singlestep(frame='data', fractions=(0.2, 0.9))", "ddim", "ancestral(eta=0.5)"]


def test_guidance_can_be_rescaled_and_kept_to_an_interval(capsys):
    how = ["--num", 2, "--steps", 4, "--label", 1, "--guidance", 3]
    code, _, _ = run(capsys, "sample", *how, "--guidance-rescale", 0.5, "--guidance-interval", 0.1, 5, "--out", "g.png")
    assert code == 0
    guidance = ods.Guidance(3.0, 0.5, (0.1, 5.0))
    x = ods.sample(ods.load("digits"), 2, num_steps=4, cond={"label": 1}, guidance_scale=guidance).x
    drawn = torch.frombuffer(bytearray(Image.open("g.png").tobytes()), dtype=torch.uint8)
    assert torch.equal(drawn, ods.images.grid(x).flatten())
    assert "need --guidance" in refused(capsys, "sample", "--guidance-rescale", 0.5, "--num", 1)


def test_grids_are_listed(capsys):
    code, out, _ = run(capsys, "grids")
    assert code == 0
    assert out == f"{ods.grids()}\n"


def test_stochastic_solvers_draw_independent_noise_unless_a_path_is_asked_for(capsys):
    model, how = ods.load("digits"), ["sample", "--num", 2, "--steps", 4, "--solver", "euler_a"]
    for noise, words in (("independent", []), ("brownian", ["--noise", "brownian"])):
        assert run(capsys, *how, *words, "--out", f"{noise}.png")[0] == 0
        x = ods.sample(model, 2, num_steps=4, solver="euler_a", noise=noise).x
        drawn = torch.frombuffer(bytearray(Image.open(f"{noise}.png").tobytes()), dtype=torch.uint8)
        assert torch.equal(drawn, ods.images.grid(x).flatten())


def test_interpolate_goes_between_seeds_and_prints_what_the_library_finds(capsys):
    how = ["--seeds", "3,4", "--num", 5, "--label", "1,2", "--solver", "ddim", "--steps", 4, "--guidance", 1.5]
    code, out, err = run(capsys, "interpolate", *how, "--how", "linear", "--report", "i.html")
    assert code == 0, err
    found = ods.interpolation_grid(
        ods.load("digits"),
        (3, 4),
        5,
        how="linear",
        cond={"label": [1, 2]},
        solver="ddim",
        num_steps=4,
        guidance_scale=1.5,
    )
    assert out == f"{found.table()}\npicture: interpolation.png\nreport: i.html\n"
    with open("i.html", encoding="utf-8") as file:
        assert found.title in file.read()
    with Image.open("interpolation.png") as picture:
        assert picture.size[0] > 400


def test_interpolate_goes_between_pictures_and_between_held_out_images(capsys):
    held_out = ods.held_out("digits").images[:2]
    ods.images.save_each(held_out, "in")
    pictures = run(capsys, "interpolate", "in", "--steps", 4, "--num", 3)
    held = run(capsys, "interpolate", "--held-out", 2, "--steps", 4, "--num", 3)
    assert (pictures[0], held[0]) == (0, 0)
    latent = ods.encode(ods.load("digits"), held_out, num_steps=4)
    table = ods.interpolation_grid(ods.load("digits"), latent, 3).table()
    assert held[1] == f"{table}\npicture: interpolation.png\n"
    assert "image 0  image 1" in pictures[1]
    assert "give one of these" in refused(capsys, "interpolate", "in", "--seeds", "1,2")
    assert "four ends" in refused(capsys, "interpolate", "--seeds", "1,2", "--square")
    assert "--held-out must be 1 or more; got 0" in refused(capsys, "interpolate", "--held-out", 0)
    assert "--held-out 999: digits has 360 held-out images" in refused(capsys, "interpolate", "--held-out", 999)


def test_interpolate_between_images_takes_guidance_and_the_way_between_as_the_library_does(capsys):
    how = ["--held-out", 2, "--steps", 4, "--num", 3, "--label", "1,2", "--guidance", 1.5, "--how", "linear"]
    code, out, err = run(capsys, "interpolate", *how)
    assert code == 0, err
    model = ods.load("digits")
    images, cond = ods.held_out("digits").images[:2], {"label": [1, 2]}
    latent = ods.encode(model, images, num_steps=4, cond=cond, guidance_scale=1.5)
    assert out == f"{ods.interpolation_grid(model, latent, 3, how='linear').table()}\npicture: interpolation.png\n"


@pytest.mark.parametrize("command", ["interpolate", "encode"])
def test_a_solve_that_does_not_arrive_is_told_options_that_its_command_has(capsys, command):
    given = ["--held-out", 2] if command == "interpolate" else ["--num", 2]
    said = refused(capsys, command, *given, "--solver", "adaptive:dopri5(max_steps=1)")
    assert "did not arrive, so nothing was written" in said
    shown = run(capsys, command, "--help")[1]
    advised = re.findall(r"--[a-z]+", said)
    assert advised
    assert all(option in shown for option in advised)


def test_sample_into_a_folder_makes_shards_and_goes_on(capsys):
    how = ["sample", "--num", 5, "--shard-size", 2, "--steps", 2, "--label", 3, "--out", "many", "--max-batch", "auto"]
    code, out, _ = run(capsys, *how)
    assert code == 0
    assert "5 items, 3 of 3 shards made, complete" in out
    alone = ods.sample(ods.load("digits"), 2, num_steps=2, cond={"label": 3}, seed=[2, 3])
    assert torch.equal(load_file("many/00001.safetensors")["x"], alone.x)
    assert "0 of 3 shards made, complete" in run(capsys, *how)[1]
    code, _, err = run(capsys, *how, "--seed", 1)
    assert code == 2
    assert "many holds another run (seeds:" in err


def test_sample_into_a_folder_writes_pictures_too(capsys):
    code, _, _ = run(capsys, "sample", "--num", 3, "--steps", 2, "--kind", "png", "--out", "many")
    assert code == 0
    alone = ods.images.to_bytes(ods.sample(ods.load("digits"), 3, num_steps=2).x)
    assert torch.equal(ods.images.to_bytes(ods.images.load("many/00000", (1, 8, 8))), alone)


def test_what_sample_wrote_is_encoded_as_the_advice_says(capsys):
    run(capsys, "sample", "--num", 3, "--steps", 2, "--kind", "png", "--shard-size", 2, "--out", "drawn")
    assert refused(capsys, "encode", "drawn", "--out", "many").endswith("name them, as in drawn/*/\n")
    assert "drawn/00000.json is no picture" in refused(
        capsys, "encode", *sorted(Path("drawn").glob("*")), "--out", "many"
    )
    code, out, err = run(
        capsys, "encode", *filter(Path.is_dir, sorted(Path("drawn").glob("*"))), "--steps", 2, "--out", "many"
    )
    assert (code, err) == (0, "")
    assert out.startswith("3 items, 1 of 1 shards made, complete, ")


def test_encode_into_a_folder_skips_what_it_cannot_read_and_says_so(capsys):
    ods.images.save_each(ods.held_out("digits").images[:4], "in")
    Path("in/00001.png").write_text("nothing")
    code, out, err = run(capsys, "encode", "in", "--steps", 3, "--shard-size", 3, "--out", "many", "--exact", "bits")
    assert code == 0, err
    assert "4 items, 2 of 2 shards made, complete" in out
    assert "skipped in/00001.png: cannot read" in err
    assert len(ods.Latent.load("many/00000.safetensors")) == 2


def test_a_run_of_which_every_picture_was_skipped_has_failed(capsys):
    ods.images.save_each(ods.held_out("digits").images[:2], "in")
    for path in Path("in").iterdir():
        path.write_text("nothing")
    for _ in range(2):
        code, out, err = run(capsys, "encode", "in", "--steps", 2, "--out", "many")
        assert code == 2
        assert "complete, 2 skipped" in out
        assert "odesampler: no picture could be encoded" in err
    assert Path("many/00000.json").is_file()


def test_what_was_skipped_is_said_in_the_line_and_again_after_a_restart(capsys):
    ods.images.save_each(ods.held_out("digits").images[:3], "in")
    Path("in/00001.png").write_text("nothing")
    for made in ("1 of 1", "0 of 1"):
        code, out, err = run(capsys, "encode", "in", "--steps", 2, "--out", "many")
        assert code == 0, err
        assert f"3 items, {made} shards made, complete, 1 skipped" in out
        assert "skipped in/00001.png: cannot read" in err


def test_a_folder_may_have_a_suffix(capsys):
    Path("run.v2").mkdir()
    for out in ("run.v2", "run.v3/"):
        code, _, err = run(capsys, "sample", "--num", 2, "--steps", 2, "--out", out)
        assert code == 0, err
        assert Path(out, "manifest.json").is_file()


def test_a_file_in_the_place_of_the_folder_is_said_in_words(capsys):
    Path("many").write_text("mine")
    assert "many is a file, and shards are written into a folder" in refused(
        capsys, "sample", "--num", 2, "--steps", 2, "--out", "many"
    )


@pytest.mark.parametrize(
    ("said", "gpus", "device"),
    [
        ({"LOCAL_RANK": "3"}, 8, "cuda:3"),
        ({"SLURM_LOCALID": "3"}, 8, "cuda:3"),
        ({"SLURM_LOCALID": "3"}, 1, "cuda:0"),
        ({"LOCAL_RANK": "1", "SLURM_LOCALID": "0"}, 8, "cuda:1"),
        ({"SLURM_LOCALID": "3"}, 0, "cuda"),
        ({}, 8, "cuda"),
    ],
)
def test_each_process_on_a_machine_has_its_own_gpu_under_torchrun_and_slurm(monkeypatch, said, gpus, device):
    from odesampler.cli.shards import local

    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert local("cuda") == device
    assert local("cpu") == "cpu"
    assert local("cuda:5") == "cuda:5"


@pytest.mark.parametrize("said", ["first", "-1"])
def test_what_says_no_number_of_a_gpu_is_named_where_there_are_any(monkeypatch, said):
    from odesampler.cli.shards import local

    monkeypatch.setenv("LOCAL_RANK", said)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=f"LOCAL_RANK in the environment must be a whole number, .* got '{said}'"):
        local("cuda")
    assert local("cpu") == "cpu"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["sample", "--shard-size", 4], "--shard-size is for a folder"),
        (["sample", "--kind", "png"], "--kind is for a folder"),
        (["encode", "--shard-size", 4], "--shard-size is for a folder"),
        (["encode", "--out", "many"], "a folder is for pictures of your own"),
        (["sample", "--out", "many.jpg"], "or be a folder"),
        (["sample", "--max-batch", "lots"], "takes a number, or auto"),
    ],
)
def test_what_belongs_to_folders_is_refused_for_files(capsys, command, words):
    code, _, err = run(capsys, *command)
    assert code == 2
    assert words in err


@pytest.fixture(scope="module")
def saved_pipelines(tmp_path_factory):
    """Folders of tiny pipelines, of pixels and of text."""
    from tests.pipelines import ddpm, sd

    folder = tmp_path_factory.mktemp("pipelines")
    for name, make in (("ddpm", ddpm), ("sd", sd)):
        make().save_pretrained(folder / name)
    return folder


def test_a_pipeline_of_diffusers_is_a_model(saved_pipelines, capsys):
    folder = saved_pipelines / "ddpm"
    assert run(capsys, "sample", "--model", folder, "--num", 2, "--steps", 3, "--out", "a.png")[0] == 0
    assert ods.images.load("a.png").shape[1] == 3
    said = refused(capsys, "encode", "--model", folder, "--out", "l.safetensors")
    assert "no held-out images: name pictures of your own" in said


def test_a_text_pipeline_is_told_a_prompt_and_goes_from_pictures_to_latents_and_back(saved_pipelines, capsys):
    told = ["--model", saved_pipelines / "sd", "--steps", 3]
    text = ["--prompt", "a cat", "--negative-prompt", "blurred", "--guidance", 3]
    assert run(capsys, "sample", *told, *text, "--num", 2, "--kind", "png", "--out", "drawn")[0] == 0
    assert run(capsys, "encode", "drawn/00000", *told, "--prompt", "a cat", "--out", "l.safetensors")[0] == 0
    assert ods.Latent.load("l.safetensors").cond["text"].shape[0] == 2
    decoded = ["--each", "back", "--out", "b.png"]
    assert run(capsys, "decode", "l.safetensors", "--model", saved_pipelines / "sd", *decoded)[0] == 0
    assert ods.images.load("back").shape == (2, 3, 16, 16)


def test_a_prompt_for_a_model_without_text_is_refused(capsys):
    assert "digits takes none" in refused(capsys, "sample", "--prompt", "a cat", "--out", "a.png")


def test_sources_are_printed_as_bibtex(capsys):
    assert run(capsys, "cite", "heun")[1] == f"{ods.cite('heun')}\n"
    assert "@software{odesampler," in run(capsys, "cite")[1]
    assert "did you mean heun" in refused(capsys, "cite", "huen")
