"""Sound as a network gets it: waves at its own rate, log-mel images, augmentation, and files that cannot be used."""

import csv
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from thaw.data.sampler import Transformed
from thaw.data.sound_files import duration, fault, load, resampled
from thaw.data.speech import Speech
from thaw.errors import UserError

RATE = 8000
IMAGE = {"channels": 1, "size": 24, "mean": [0.5], "std": [0.25], "interpolation": "bilinear", "crop_pct": 1.0}


def tone(frequency: float, seconds: float, rate: int = RATE, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def pitch(wave: np.ndarray, rate: int) -> float:
    """The strongest frequency."""
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave)), 2**17))
    return float(np.argmax(spectrum) * rate / 2**17)


def save(path: Path, wave: np.ndarray, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate)
    return path


def tree(folder: Path, count: int = 6, seconds: float = 0.2) -> Path:
    """Two classes, low and high, whose recordings grow longer by 10 ms each."""
    for name, frequency in (("high", 1500), ("low", 300)):
        for number in range(count):
            save(folder / name / f"{number}.wav", tone(frequency + number, seconds + number / 100))
    return folder


def speech(root: Path, **options: Any) -> Speech:
    return Speech(str(root), **{"num_workers": 0, "val_size": 0.34} | options)


def refusal(root: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        speech(root, **options)
    assert len(str(caught.value).splitlines()) <= 6
    return str(caught.value)


# Files


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_every_format_gives_one_channel_between_minus_one_and_one(tmp_path: Path, suffix: str) -> None:
    wave, rate = load(str(save(tmp_path / f"a.{suffix}", tone(440, 0.5))))
    assert rate == RATE
    assert wave.dtype == np.float32
    assert wave.ndim == 1
    assert 0.4 < np.abs(wave).max() < 0.65
    assert len(wave) / rate == pytest.approx(0.5, abs=0.06)
    assert pitch(wave, rate) == pytest.approx(440, abs=4)
    assert duration(str(tmp_path / f"a.{suffix}")) == pytest.approx(0.5, abs=0.06)


def test_stereo_becomes_the_mean_of_its_channels(tmp_path: Path) -> None:
    left, right = tone(300, 0.2), tone(900, 0.2, level=0.25)
    wave, _ = load(str(save(tmp_path / "a.wav", np.stack([left, right], axis=1))))
    assert np.allclose(wave, (left + right) / 2, atol=1e-4)


@pytest.mark.parametrize(("rate", "wanted"), [(8000, 16000), (44100, 16000), (22050, 8000), (16000, 16000)])
def test_resampling_keeps_duration_and_pitch(rate: int, wanted: int) -> None:
    wave = resampled(tone(440, 0.5, rate), rate, wanted)
    assert wave.dtype == np.float32
    assert len(wave) / wanted == pytest.approx(0.5, abs=1e-3)
    assert pitch(wave, wanted) == pytest.approx(440, abs=3)
    assert np.sqrt(np.mean(wave**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.02)


def test_class_folders_and_zip_files_of_them(tmp_path: Path) -> None:
    tree(tmp_path / "plain")
    with zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
        for path in sorted((tmp_path / "plain").rglob("*.wav")):
            archive.write(path, f"train/{path.relative_to(tmp_path / 'plain')}")
    (tmp_path / "packed").mkdir()
    (tmp_path / "train.zip").rename(tmp_path / "packed" / "train.zip")
    plain, packed = speech(tmp_path / "plain"), speech(tmp_path / "packed")
    assert plain.classes == packed.classes == ["high", "low"]
    for (first, rate), (second, again) in zip(
        (sound for sound, _ in plain.splits["train"]), (sound for sound, _ in packed.splits["train"]), strict=True
    ):
        assert rate == again
        assert np.array_equal(first, second)


@pytest.mark.parametrize("kind", ["csv", "folder"])
def test_paths_of_a_manifest_are_relative_to_it(tmp_path: Path, kind: str) -> None:
    tree(tmp_path / "data" / "clips")
    with open(tmp_path / "data" / "train.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "said"])
        writer.writerows(
            [f"clips/{name}/{number}.wav", f"{name} {number}"] for name in ("high", "low") for number in range(6)
        )
    root = tmp_path / "data" / "train.csv" if kind == "csv" else tmp_path / "data"
    data = speech(root, target="transcript", path_column="file", label_column="said")
    assert sorted(data.sizes.items()) == [("train", 7), ("val", 5)]
    assert data.classes == sorted(set("high low 012345"))
    for split, samples in data.splits.items():
        for index, (_, target) in enumerate(samples):
            path = Path(samples.name(index))
            assert path.is_relative_to(tmp_path)
            said = "".join(data.classes[letter] for letter in target)
            assert said == f"{path.parent.name} {path.stem}", split


def test_a_label_may_stand_for_what_is_said(tmp_path: Path) -> None:
    data = speech(tree(tmp_path), target="transcript", transcripts={"low": "Deep  tone", "high": "shrill"})
    (_, target) = next(pair for pair in data.splits["train"] if len(pair[1]) > 6)
    assert "".join(data.classes[letter] for letter in target) == "deep tone"
    assert "it lacks ['low']" in refusal(tmp_path, target="transcript", transcripts={"high": "shrill"})


def test_labels_that_are_numbers_have_transcripts_too(tmp_path: Path) -> None:
    for digit in range(2):
        for number in range(4):
            save(tmp_path / str(digit) / f"{number}.wav", tone(300, 0.1))
    data = speech(tmp_path, target="transcript", transcripts={0: "zero", 1: "one"})
    assert data.classes == sorted(set("zeroone"))


# Bad files


@pytest.mark.fault("E2")
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.write_text("<html>404</html>"), "no readable sound"),
        (lambda path: path.write_bytes(b""), "no readable sound"),
        (lambda path: path.write_bytes(path.read_bytes()[:20]), "no readable sound"),
        (lambda path: save(path, tone(300, 0.01)), "shorter than 0.02 s"),
        (lambda path: save(path, tone(300, 0)), "shorter than 0.02 s"),
        (lambda path: path.unlink(), "no readable sound"),
    ],
)
def test_files_that_cannot_be_used_are_named_before_training(tmp_path: Path, spoil: Any, reason: str) -> None:
    tree(tmp_path / "clips")
    rows = ["path,label", *(f"clips/{name}/{n}.wav,{name}" for name in ("high", "low") for n in range(6))]
    (tmp_path / "train.csv").write_text("\n".join(rows))
    spoil(tmp_path / "clips" / "low" / "3.wav")
    said = refusal(tmp_path)
    assert f"1 cannot be used: train[9] '{tmp_path}/clips/low/3.wav' ({reason})" in said
    assert "data.on_bad_sample=skip" in said
    assert "1 cannot be used" in refusal(tmp_path, on_bad_sample="skip")  # of twelve: more than one in a hundred


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("share", [0.1, 0.6, 0.98])
def test_a_file_that_lacks_its_end_is_named_before_training(tmp_path: Path, share: float, packed: bool) -> None:
    """The header of FLAC still promises all of it."""
    tree(tmp_path / "train")
    path = save(tmp_path / "train" / "low" / "cut.flac", tone(300, 2.0))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert duration(str(path)) == 2.0
    name = str(path)
    if packed:
        archive = shutil.make_archive(str(tmp_path / "train"), "zip", tmp_path, "train")
        shutil.rmtree(tmp_path / "train")
        name = f"{archive}::train/low/cut.flac"
    assert f"1 cannot be used: train[12] '{name}' (cut short or damaged)" in refusal(tmp_path)


@pytest.mark.parametrize("suffix", ["wav", "ogg", "mp3"])
@pytest.mark.parametrize("share", [0.1, 0.6, 0.98])
def test_a_file_of_a_format_that_may_end_early_is_named_or_can_be_read(
    tmp_path: Path, suffix: str, share: float
) -> None:
    path = save(tree(tmp_path) / "low" / f"cut.{suffix}", tone(300, 2.0))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    reason = fault(str(path), to_the_end=True)
    if reason:
        assert f"1 cannot be used: train[12] '{path}' ({reason})" in refusal(tmp_path)
    else:
        assert 0 < len(load(str(path))[0]) < 2.0 * RATE


def test_files_cut_short_are_left_out_where_that_was_asked_for(tmp_path: Path) -> None:
    tree(tmp_path, count=50, seconds=0.03)
    path = save(tmp_path / "low" / "cut.flac", tone(300, 0.5))
    path.write_bytes(path.read_bytes()[:-500])
    data = speech(tmp_path, on_bad_sample="skip")
    assert data.quality().skipped == {"cut short or damaged": 1}


def test_the_end_of_every_file_is_looked_at_up_to_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tree(tmp_path) / "low" / "cut.flac", tone(300, 0.5))
    path.write_bytes(path.read_bytes()[:-500])
    monkeypatch.setattr("thaw.data.speech.CHECKED_FILES", 12)
    assert sum(speech(tmp_path).sizes.values()) == 13
    monkeypatch.setattr("thaw.data.speech.CHECKED_FILES", 13)
    assert "cut short or damaged" in refusal(tmp_path)


def test_one_bad_file_in_a_hundred_is_left_out_and_counted(tmp_path: Path) -> None:
    tree(tmp_path, count=50, seconds=0.03)
    (tmp_path / "low" / "7.wav").write_text("no sound")
    data = speech(tmp_path, on_bad_sample="skip")
    assert sum(data.sizes.values()) == 99
    assert data.quality().skipped == {"no readable sound": 1}
    assert [name.removeprefix(str(tmp_path)) for _, name, _ in data.skipped] == ["/low/7.wav"]


@pytest.mark.fault("E16")
def test_the_same_recording_in_two_splits_is_found(tmp_path: Path) -> None:
    tree(tmp_path / "train")
    (tmp_path / "test" / "low").mkdir(parents=True)
    (tmp_path / "test" / "low" / "other-name.wav").write_bytes((tmp_path / "train" / "low" / "2.wav").read_bytes())
    leaks = {(leak.earlier, leak.later): leak.samples for leak in speech(tmp_path).quality().leaks}
    assert sum(leaks.values()) == 1
    assert {later for _, later in leaks} == {"test"}


# Waves


@pytest.mark.parametrize("wanted", [8000, 16000])
def test_waves_are_padded_to_the_longest_of_the_batch_with_their_lengths(tmp_path: Path, wanted: int) -> None:
    data = speech(tree(tmp_path), batch_size=4, time_shift=0.0)
    data.preprocess(kind="waveform", sampling_rate=wanted, extract=None)
    seen = 0
    for batch, targets in data.train_dataloader():
        values, lengths = batch["input_values"], batch["lengths"]
        assert values.dtype == torch.float32
        assert values.shape == (len(targets), int(lengths.max()))
        for row, length, target in zip(values, lengths.tolist(), targets.tolist(), strict=True):
            assert (row[length:] == 0).all()
            assert row[:length].abs().max() > 0.4
            assert pitch(row[:length].numpy(), wanted) == pytest.approx([1500, 300][target], abs=30)
            assert 0.2 <= length / wanted <= 0.2501
            seen += 1
    assert seen == data.sizes["train"]
    assert data.quality().unit == "seconds"
    assert data.quality().lengths["train"]["max"] == pytest.approx(0.25, abs=0.011)


def test_a_network_prepares_waves_in_its_own_way(tmp_path: Path) -> None:
    data = speech(tree(tmp_path), batch_size=4)
    data.preprocess(kind="waveform", sampling_rate=8000, extract=lambda wave: (torch.ones(len(wave) // 100, 3), 7))
    batch, _ = next(iter(data.val_dataloader()))
    assert batch["input_values"].shape[0] == 4
    assert batch["input_values"].shape[2] == 3
    assert batch["lengths"].tolist() == [7] * 4


def test_what_is_too_long_is_cut_and_counted(tmp_path: Path) -> None:
    data = speech(tree(tmp_path), max_seconds=0.225, batch_size=16)
    data.preprocess(kind="waveform", sampling_rate=8000, extract=None)
    batch, _ = next(iter(data.train_dataloader()))
    assert batch["lengths"].max() == 0.225 * 8000
    assert sum(data.truncated.values()) == 6  # 0.23, 0.24 and 0.25 s of each class
    assert data.quality().truncated == data.truncated
    assert max(data.lengths("train")) == pytest.approx(0.225)


def test_recordings_of_similar_length_go_together(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number, seconds in enumerate(rng.permutation(np.geomspace(0.03, 1, 64))):
        save(tmp_path / "ab"[number % 2] / f"{number}.wav", tone(300, seconds))
    data = speech(tmp_path, batch_size=8)
    data.preprocess(kind="waveform", sampling_rate=8000, extract=None)
    for batch, _ in data.train_dataloader():
        assert batch["lengths"].max() < 3 * batch["lengths"].min()


# Images


def test_an_image_has_the_size_the_channels_and_the_level_of_the_network(tmp_path: Path) -> None:
    data = speech(tree(tmp_path), batch_size=4, time_shift=0.1)
    data.preprocess(kind="image", **IMAGE)
    (images, targets) = next(iter(data.train_dataloader()))
    assert images.shape == (4, 1, 24, 24)
    assert targets.shape == (4,)
    colour = IMAGE | {"channels": 3, "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.25, 1.0]}
    data.preprocess(kind="image", **colour)
    images, _ = next(iter(data.val_dataloader()))
    assert images.shape == (4, 3, 24, 24)
    grey = images * torch.tensor(colour["std"]).view(-1, 1, 1) + torch.tensor(colour["mean"]).view(-1, 1, 1)
    assert torch.allclose(grey[:, 0], grey[:, 1], atol=1e-6)
    assert torch.allclose(grey[:, 0], grey[:, 2], atol=1e-6)
    assert grey.min() >= -1e-6
    assert grey.max() <= 1 + 1e-6
    assert 0.3 < grey.mean() < 0.7


def test_high_sounds_stand_above_low_ones(tmp_path: Path) -> None:
    data = speech(tree(tmp_path, seconds=0.5), image_size=64)
    assert data.network_arguments == {"image_size": 64}
    data.preprocess(kind="image", **IMAGE | {"size": 64})
    rows = {}
    for sound, target in data.splits["val"]:
        image = data.transforms["eval"](sound)
        rows.setdefault(data.classes[target], []).append(int(image[0].mean(dim=1).argmax()))
    assert max(rows["high"]) < min(rows["low"])


def test_loudness_does_not_show(tmp_path: Path) -> None:
    data = speech(tree(tmp_path))
    data.preprocess(kind="image", **IMAGE)
    noise = np.random.default_rng(0).normal(0, 0.1, 4000).astype(np.float32)
    loud, quiet = (data.transforms["eval"]((noise * level, 16_000)) for level in (1.0, 0.2))
    assert torch.allclose(loud, quiet, atol=0.05)


@pytest.mark.parametrize(("window", "expected"), [(None, 0.25), (0.1, 0.1)])
def test_a_window_holds_most_recordings_whole(tmp_path: Path, window: float | None, expected: float) -> None:
    """What stands after the window does not show, and what stands before its end does."""
    data = speech(tree(tmp_path), window=window)
    data.preprocess(kind="image", **IMAGE)
    transform = data.transforms["eval"]
    rng = np.random.default_rng(0)
    wave = rng.normal(0, 0.1, RATE).astype(np.float32)
    after, before = wave.copy(), wave.copy()
    after[round((expected + 0.01) * RATE) :] = 0
    before[round((expected - 0.05) * RATE) :] = 0
    assert torch.allclose(transform((wave, RATE)), transform((after, RATE)), atol=1e-5)
    assert not torch.allclose(transform((wave, RATE)), transform((before, RATE)), atol=0.1)


# Augmentation


@pytest.mark.parametrize("kind", ["image", "waveform"])
@pytest.mark.parametrize("options", [{"time_shift": 0.05}, {"noise": 5.0}, {"time_shift": 0.05, "noise": 20.0}])
def test_augmentation_depends_on_seed_epoch_and_index_alone(tmp_path: Path, kind: str, options: dict) -> None:
    data = speech(tree(tmp_path), spec_augment=False, **options)
    data.preprocess(kind=kind, **IMAGE) if kind == "image" else data.preprocess(
        kind=kind, sampling_rate=8000, extract=None
    )

    def drawn(seed: int, epoch: int, index: int) -> torch.Tensor:
        found = Transformed([data.splits["train"][0]] * 3, data.transforms["train"], seed)[(epoch, index)][0]
        return found if kind == "image" else found[0]

    first = drawn(1, 2, 0)
    torch.manual_seed(99)
    np.random.seed(99)
    assert torch.equal(first, drawn(1, 2, 0))
    others = [drawn(1, 3, 0), drawn(1, 2, 1), drawn(2, 2, 0)]
    assert not any(other.shape == first.shape and torch.equal(first, other) for other in others)
    evaluated = [data.transforms["eval"](data.splits["train"][0][0]) for _ in range(2)]
    same = evaluated if kind == "image" else [value for value, _ in evaluated]
    assert torch.equal(*same)


def test_spec_augment_masks_training_images_alone(tmp_path: Path) -> None:
    plain, masked = (speech(tree(tmp_path), spec_augment=on) for on in (False, True))
    for data in (plain, masked):
        data.preprocess(kind="image", **IMAGE)
    sound, _ = plain.splits["train"][0]
    torch.manual_seed(0)
    assert torch.equal(plain.transforms["train"](sound), plain.transforms["eval"](sound))
    assert torch.equal(masked.transforms["eval"](sound), plain.transforms["eval"](sound))
    assert not torch.equal(masked.transforms["train"](sound), masked.transforms["eval"](sound))


def test_noise_keeps_the_ratio_that_was_asked_for(tmp_path: Path) -> None:
    data = speech(tree(tmp_path), noise=10.0)
    data.preprocess(kind="waveform", sampling_rate=8000, extract=None)
    wave = tone(300, 1.0)
    torch.manual_seed(0)
    ratios = []
    for _ in range(50):
        noise = data.transforms["train"]((wave, RATE))[0].numpy() - wave
        ratios.append(10 * np.log10(np.mean(wave**2) / np.mean(noise**2)))
    assert 9.5 <= min(ratios) <= 14
    assert 36 <= max(ratios) <= 40.5


@pytest.mark.parametrize("time_shift", [0.05, 5.0])
def test_a_shift_moves_a_sound_either_way_and_leaves_some_of_it(tmp_path: Path, time_shift: float) -> None:
    data = speech(tree(tmp_path), time_shift=time_shift)
    data.preprocess(kind="waveform", sampling_rate=8000, extract=None)
    wave = tone(300, 0.2)
    torch.manual_seed(0)
    moved = [data.transforms["train"]((wave, RATE))[0].numpy() for _ in range(40)]
    shifts = [(len(one) - len(wave)) / RATE for one in moved]
    assert min(shifts) < 0 < max(shifts)
    assert max(map(abs, shifts)) <= time_shift
    assert min(map(len, moved)) >= 0.02 * RATE
    for one, shift in zip(moved, shifts, strict=True):
        count = round(shift * RATE)
        kept = one[count:] if count > 0 else one
        assert np.array_equal(kept, wave if count > 0 else wave[-count:])


def test_an_image_network_learns_which_tone_it_hears(tmp_path: Path) -> None:
    data = speech(tree(tmp_path, count=12), batch_size=8, time_shift=0.02)
    data.preprocess(kind="image", **IMAGE)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(24 * 24, 2))
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(10):
        for images, targets in data.train_dataloader():
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images), targets).backward()
            optimizer.step()
    for images, targets in data.val_dataloader():
        assert (network(images).argmax(dim=1) == targets).all()


def test_what_an_image_does_not_show_is_counted(tmp_path):
    data = Speech(root=str(tree(tmp_path, seconds=0.5)), window=0.52, val_size=0.34)
    data.preprocess(kind="image", **IMAGE)
    assert data.truncated == {split: int((seconds > 0.52).sum()) for split, seconds in data.seconds.items()}
    assert sum(data.truncated.values()) > 0
