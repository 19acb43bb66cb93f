"""What `make denoising` reports, worked out anew by numpy and by fits in one piece."""

import json
import sys
from functools import partial

import numpy as np
import pytest

import dip_utils as dip
from benchmarks import common, denoising

STEPS = 12


def psnr(clean, image):
    clean, image = (np.asarray(values, dtype=np.float64) for values in (clean, image))
    return -10 * np.log10(np.square(clean - image).mean())


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A folder with a colour picture of odd sides, a grey one, a tiny one, and no picture; a network that is fast."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    dip.save_image(dip.resize(dip.sample("chelsea"), 33, 40), folder / "cat.png")
    dip.save_image(dip.resize(dip.sample("rocket"), 32, 48).mean(dim=0, keepdim=True), folder / "grey.PNG")
    dip.save_image(dip.resize(dip.sample("coffee"), 4, 9), folder / "icon.png")
    (folder / "notes.txt").write_text("none")
    (folder / ".hidden.png").write_text("none")
    monkeypatch.setattr(denoising, "RESULTS", tmp_path)
    monkeypatch.setattr(common, "PIECE", 8)
    monkeypatch.setattr(dip, "RESTORATION", dict(input_channels=32, channels=(4, 6), skip_channels=(2, 2)))
    monkeypatch.setattr(dip, "HoldOut", partial(dip.HoldOut, first=3))
    monkeypatch.setattr(sys, "argv", ["denoising", "--folder", str(folder), "--steps", str(STEPS)])
    return folder


@pytest.mark.slow
def test_denoising_of_a_folder(pictures, tmp_path, monkeypatch, capsys):
    plain, fitted = dip.fit, []

    def stopped(*arguments, **options):
        if len(fitted) == 3:
            raise KeyboardInterrupt
        fitted.append(options["steps"])
        return plain(*arguments, **options)

    with monkeypatch.context() as until_then:
        until_then.setattr(dip, "fit", stopped)
        with pytest.raises(KeyboardInterrupt):
            denoising.main()
    monkeypatch.setattr(dip, "fit", lambda *a, **options: fitted.append(options["steps"]) or plain(*a, **options))
    denoising.main()
    assert sum(fitted) == 2 * 3 * STEPS  # no step was done twice

    (path,) = tmp_path.rglob("results.json")
    rows = json.loads(path.read_text("utf-8"))["rows"]
    assert len(rows) == 2 * (1 + 3)
    for name in ("cat.png", "grey.PNG"):
        clean = dip.load_image(pictures / name)
        noisy = dip.add_gaussian_noise(clean, 25 / 255, seed=0)
        (classical,) = (row for row in rows if row["picture"] == name and "seed" not in row)
        assert classical["noisy"] == pytest.approx(psnr(clean, noisy), abs=1e-4)
        blurred = dip.denoise(noisy, "Gaussian blur", 25 / 255, 0.8)
        assert classical["Gaussian blur"]["0.8"] == pytest.approx(psnr(clean, blurred), abs=1e-4)
        chosen = []
        for seed in range(3):
            network = dip.SkipNetwork(**dip.RESTORATION, output_channels=len(clean), seed=seed)
            z = dip.random_input(32, *clean.shape[1:], seed=seed)
            run = plain(network, z, noisy, steps=STEPS, seed=seed, stop=dip.HoldOut(patience=None))
            chosen.append(run.chosen.numpy())
            (row,) = (row for row in rows if row["picture"] == name and row.get("seed") == seed)
            assert (row["steps"], row["chosen_step"]) == (STEPS, int(run.held_out[3:].argmin()) + 3)
            images = {"last output": run.output, "average at the end": run.average, "chosen average": run.chosen}
            for column, image in (images | {"together": np.mean(chosen, axis=0)}).items():
                assert row[column] == pytest.approx(psnr(clean, image), abs=0.02), column
    printed = capsys.readouterr().out
    assert "smaller than 5 pixels: icon.png" in printed
    assert printed.rstrip().splitlines()[-1].startswith("| mean ")


def planted(name, *found, seeds=(0, 1, 2)):
    """Rows of a picture whose PSNR is as given with the first and the second strength of each method."""
    strengths = {method: {"1": found[0], "2": found[1]} for method in denoising.STRENGTHS}
    columns = ("last output", "average at the end", "chosen average", "together", "seconds")
    runs = [{"picture": name, "seed": seed} | dict.fromkeys(columns, 30 + seed) for seed in seeds]
    return [{"picture": name, "noisy": 20} | strengths, *runs]


def test_strengths_are_tuned_on_the_others():
    """The second strength is far better on a, a little worse on b and c: in the mean over all three it is the best."""
    rows = [*planted("a", 20, 40), *planted("b", 30, 29), *planted("c", 31, 30)]
    lines = denoising.table(rows)
    for method in denoising.STRENGTHS:
        cells = {line["picture"]: line[method] for line in lines}
        assert cells.pop("mean") == "26.33 / 33.67"
        assert cells == {"a": "20.00 / 40.00", "b": "29.00 / 30.00", "c": "30.00 / 31.00"}
    assert {line["chosen average"] for line in lines} == {"30.00"}
    assert {line["three together"] for line in lines} == {"32.00"}


def test_a_single_picture_has_no_others_and_missing_runs_no_table():
    assert denoising.table(planted("a", 20, 40))[0]["wavelet"] == "– / 40.00"
    assert denoising.table([*planted("a", 20, 40), *planted("b", 30, 29, seeds=(0, 1))]) == []
