"""Images: disjoint splits, the same choice everywhere, and one clear line for bad input."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from modcap.checkpoints import _torchvision
from modcap.checkpoints.published_preprocess import published_preprocess
from modcap.core.errors import InputError
from modcap.data import image_folder
from modcap.data import sources as data
from modcap.data.preprocess import Preprocess
from modcap.data.sources import Images, Split
from modcap.zoo import PREPROCESS

GRAY = Preprocess(mean=(0.5,), std=(0.25,))
FULL = Path("/usr/share/datasets/fashion-mnist")
SHIPPED = Path(data.__file__).parents[2] / "examples" / "fashion_mnist" / "data"


def refused(spec: str, *words: str, preprocess: Preprocess = GRAY) -> None:
    with pytest.raises(InputError) as caught:
        data.load(spec, split="calibration", preprocess=preprocess)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def write_npz(path: Path, count: int = 40, **changes: object) -> str:
    rng = np.random.default_rng(0)
    arrays = {
        "images": rng.integers(0, 256, (count, 1, 6, 5), np.uint8),
        "labels": np.arange(count),
    }
    np.savez(path, **(arrays | changes))  # type: ignore[arg-type]
    return str(path)


CLASSES = ("bag", "coat", "shirt")


def write_folder(
    root: Path, count: int = 4, size: tuple[int, int] = (12, 10), names: Sequence[str] = CLASSES
) -> None:
    for label, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for index in range(count):
            pixels = np.full((size[1], size[0], 3), 40 * label + index, np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")


# --- Fashion-MNIST


def test_shipped_subset() -> None:
    pool = data.load(f"fashion-mnist:{SHIPPED}", split="calibration", preprocess=PREPROCESS)
    tests = data.load(f"fashion-mnist:{SHIPPED}", split="evaluation", preprocess=PREPROCESS)
    assert pool.images.shape == (data.POOL, 1, 28, 28)
    assert tests.images.shape == (10_000, 1, 28, 28)
    assert (np.bincount(tests.labels) == 1000).all()
    assert set(pool.labels) == set(range(10))
    assert not {i.tobytes() for i in pool.images} & {i.tobytes() for i in tests.images}


@pytest.mark.skipif(not FULL.is_dir(), reason="the full set is not installed")
def test_full_set_and_subset_give_the_same_images() -> None:
    for split in ("calibration", "evaluation"):
        full, subset = (
            data.load(f"fashion-mnist:{folder}", split=split, preprocess=PREPROCESS)  # type: ignore[arg-type]
            for folder in (FULL, SHIPPED)
        )
        assert full.digest == subset.digest
        assert data.calibration(full, 64, 1).digest == data.calibration(subset, 64, 1).digest


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files(tmp_path: Path, suffix: str) -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    labels = np.array([2, 0, 1], np.uint8)
    for name, array in (("images-idx3", pixels), ("labels-idx1", labels)):
        header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
        raw = header + array.tobytes()
        packed = gzip.compress(raw) if suffix else raw
        (tmp_path / f"t10k-{name}-ubyte{suffix}").write_bytes(packed)
    spec = f"fashion-mnist:{tmp_path}"
    found = data.load(spec, split="evaluation", preprocess=GRAY)
    assert (found.images[:, 0] == pixels).all()
    assert (found.labels == labels).all()
    broken = tmp_path / f"t10k-images-idx3-ubyte{suffix}"
    broken.write_bytes(broken.read_bytes()[:-3])
    with pytest.raises(InputError, match="damaged"):
        data.load(spec, split="evaluation", preprocess=GRAY)


def test_fashion_mnist_elsewhere(tmp_path: Path) -> None:
    refused(f"fashion-mnist:{tmp_path}", str(tmp_path), "fashion-mnist:DIR")


# --- arrays


@pytest.mark.parametrize("count", [3, 40, 3 * data.POOL])
def test_splits_of_one_source_are_disjoint_and_complete(tmp_path: Path, count: int) -> None:
    spec = write_npz(tmp_path / "d.npz", count)
    pool, rest, whole = (
        data.load(spec, split=split, preprocess=GRAY)  # type: ignore[arg-type]
        for split in ("calibration", "evaluation", "all")
    )
    assert len(pool) == min(data.POOL, count // 2)
    assert sorted([*pool.labels, *rest.labels]) == sorted(whole.labels) == list(range(count))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"labels": np.arange(3)}, "labels"),
        ({"labels": np.zeros(40)}, "integer"),
        ({"labels": np.zeros((40, 1), np.int64)}, "give one integer for each"),
        ({"labels": np.zeros((3, 6, 5), np.int64)}, "a map (H, W) of integers for each"),
        ({"images": np.zeros((40, 6, 5), np.uint8)}, "(N, C, H, W)"),
        ({"images": np.zeros((40, 1, 6, 5))}, "float64"),
        ({"images": np.full((40, 1, 6, 5), 255, np.float32)}, "scale them"),
        ({"images": np.full((40, 1, 6, 5), np.nan, np.float32)}, "nan"),
        ({"images": np.zeros((40, 3, 6, 5), np.uint8)}, "3 channels"),
        ({"images": np.array([{}] * 40)}, "cannot be read"),
    ],
)
def test_bad_arrays(tmp_path: Path, changes: dict[str, object], word: str) -> None:
    refused(write_npz(tmp_path / "d.npz", 40, **changes), word)


def test_bad_npz_files(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    refused(str(path), "does not exist")
    data_ = Path(write_npz(path)).read_bytes()
    for damaged in (b"", data_[:200], b"noise" * 99):
        path.write_bytes(damaged)
        refused(str(path), "cannot be read")
    np.savez(path, labels=np.zeros(2, np.int64))
    refused(str(path), "it holds no images")


def test_images_without_labels(tmp_path: Path) -> None:
    pixels = np.arange(10 * 4, dtype=np.uint8).reshape(10, 1, 2, 2)
    np.savez(tmp_path / "d.npz", images=pixels)
    for index, image in enumerate(pixels):
        (tmp_path / "flat").mkdir(exist_ok=True)
        Image.fromarray(image[0]).save(tmp_path / "flat" / f"{index}.png")
        for split in ("train", "val"):
            (tmp_path / "two" / split).mkdir(exist_ok=True, parents=True)
            Image.fromarray(image[0]).save(tmp_path / "two" / split / f"{index}.png")
    digests = set()
    for place in ("d.npz", "flat"):
        spec = str(tmp_path / place)
        pool = data.load(spec, split="calibration", preprocess=GRAY)
        rest = data.load(spec, split="evaluation", preprocess=GRAY, limit=4)
        assert (len(pool), len(rest), pool.labels, rest.labels) == (5, 4, None, None)
        assert (pool.classes, rest.left_out) == (None, 5)
        digests.add(pool.digest)
    assert len(digests) == 1
    assert len(data.load(str(tmp_path / "two"), split="all", preprocess=GRAY)) == 10
    labels = np.zeros((10, 2, 2), np.int64)  # of a map, for metrics of one's own
    np.savez(tmp_path / "d.npz", images=pixels, labels=labels)
    found = data.load(str(tmp_path / "d.npz"), split="all", preprocess=GRAY).labels
    assert found is not None
    assert found.shape == labels.shape


# --- folders


def test_folder_without_splits(tmp_path: Path) -> None:
    write_folder(tmp_path)
    rgb = Preprocess(crop=8, mean=(0.5,) * 3, std=(0.25,) * 3)
    pool, rest = (
        data.load(str(tmp_path), split=split, preprocess=rgb)  # type: ignore[arg-type]
        for split in ("calibration", "evaluation")
    )
    assert len(pool) == len(rest) == 6
    assert pool.images.shape[1:] == (3, 8, 8)
    for found in (pool, rest):
        assert (found.images[:, 0, 0, 0] // 40 == found.labels).all()
    seen = [int(image[0, 0, 0]) for image in (*pool.images, *rest.images)]
    assert len(set(seen)) == 12


def test_folder_with_splits_and_gray_images(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", count=5)
    write_folder(tmp_path / "val", count=2)
    sizes = [
        len(data.load(str(tmp_path), split=split, preprocess=GRAY))  # type: ignore[arg-type]
        for split in ("calibration", "evaluation", "all")
    ]
    assert sizes == [15, 6, 6]
    assert data.load(str(tmp_path), split="all", preprocess=GRAY).images.shape == (6, 1, 10, 12)


@pytest.mark.parametrize("name", ["val", "valid", "validation", "test"])
def test_names_of_the_split_to_evaluate_on(tmp_path: Path, name: str) -> None:
    write_folder(tmp_path / "train", count=5)
    write_folder(tmp_path / name, count=2)
    if name == "val":
        write_folder(tmp_path / "test", count=9)
    found = data.load(str(tmp_path), split="evaluation", preprocess=GRAY)
    assert np.bincount(found.labels).tolist() == [2, 2, 2]
    assert len(data.load(str(tmp_path), split="calibration", preprocess=GRAY)) == 15


def test_splits_that_are_not_clear(tmp_path: Path) -> None:
    write_folder(tmp_path / "train")
    refused(str(tmp_path), f"{tmp_path} has train/ and no val/")
    write_folder(tmp_path / "test")
    write_folder(tmp_path / "valid")
    refused(str(tmp_path), "has valid/ and test/ beside train/")
    (tmp_path / "train").rename(tmp_path / "training")
    refused(str(tmp_path), "has valid/ and no train/")
    (tmp_path / "val").mkdir()
    (tmp_path / "training").rename(tmp_path / "train")
    with pytest.raises(InputError, match="val has no images"):
        data.load(str(tmp_path), split="evaluation", preprocess=GRAY)


@pytest.mark.parametrize(
    "splits", [("Train", "Test"), ("TRAIN", "VAL"), ("training", "testing"), ("trainset", "eval")]
)
def test_splits_of_other_names_are_no_classes(tmp_path: Path, splits: tuple[str, str]) -> None:
    for split in splits:
        write_folder(tmp_path / split)
    refused(str(tmp_path), f"{splits[0]}/", "call them train/ and val/")
    for split in splits:
        (tmp_path / split / "bag" / "0.png").rename(tmp_path / split / "0.png")
    found = data.load(str(tmp_path), split="all", preprocess=GRAY)  # a class of that name
    assert set(found.classes or ()) == set(splits)


def test_folders_that_tools_leave_behind_are_no_classes(tmp_path: Path) -> None:
    left = ("System Volume Information", "#recycle", "@Recycle", "RECYCLER", "lost+found", "CVS")
    write_folder(tmp_path, names=CLASSES)
    write_folder(tmp_path, names=left)
    assert data.load(str(tmp_path), split="all", preprocess=GRAY).classes == CLASSES


def test_accents_are_one_letter_or_two(tmp_path: Path) -> None:
    write_folder(tmp_path, names=("cafe\u0301", "the\u0301"))
    names = ("caf\u00e9", "th\u00e9")
    found = data.load(str(tmp_path), split="all", preprocess=GRAY, classes=names)
    assert np.bincount(found.labels).tolist() == [4, 4]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write_folder(tmp_path, names=("bus", "train"))
    found = data.load(str(tmp_path), split="all", preprocess=GRAY)
    assert np.bincount(found.labels).tolist() == [4, 4]


def test_the_training_split_numbers_the_classes(tmp_path: Path) -> None:
    write_folder(tmp_path / "train")
    write_folder(tmp_path / "val", names=CLASSES[1:])
    (tmp_path / "val" / "empty").mkdir()
    found = data.load(str(tmp_path), split="evaluation", preprocess=GRAY)
    assert np.bincount(found.labels).tolist() == [0, 4, 4]
    write_folder(tmp_path / "val", names=("a", "b", "c", "d"))
    with pytest.raises(InputError, match=r"val has images of a, b, c and 1 more, and .*train no"):
        data.load(str(tmp_path), split="evaluation", preprocess=GRAY)
    (tmp_path / "train" / "d").mkdir()
    with pytest.raises(InputError, match="images of a, b, c, and"):
        data.load(str(tmp_path), split="evaluation", preprocess=GRAY)


@pytest.mark.parametrize("source", ["divided", "whole", "d.npz", f"fashion-mnist:{SHIPPED}"])
@pytest.mark.parametrize("split", ["calibration", "evaluation", "all"])
def test_a_limit_takes_the_first_and_decodes_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, split: Split
) -> None:
    write_folder(tmp_path / "divided" / "train", count=5)
    write_folder(tmp_path / "divided" / "val", count=4)
    write_folder(tmp_path / "whole", count=5)
    write_npz(tmp_path / "d.npz")
    spec = source if ":" in source else str(tmp_path / source)
    whole = data.load(spec, split=split, preprocess=GRAY)
    decode, decoded = image_folder.image_file.pixels, []
    monkeypatch.setattr(
        image_folder.image_file, "pixels", lambda *given: decoded.append(given) or decode(*given)
    )
    some = data.load(spec, split=split, preprocess=GRAY, limit=3)
    assert some.digest == whole.take(range(3)).digest
    assert len(decoded) == (0 if ":" in source or "." in source else 3)
    assert data.load(spec, split=split, preprocess=GRAY, limit=10**6).digest == whole.digest


def test_resize_and_crop_are_torchvisions(tmp_path: Path) -> None:
    _torchvision.models()
    from torchvision.transforms import v2

    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (37, 53, 3), np.uint8))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        picture.save(tmp_path / name / "0.png")
    for method in ("bilinear", "bicubic"):
        ours = Preprocess(resize=24, crop=21, interpolation=method, mean=(0.0,) * 3, std=(1.0,) * 3)
        found = data.load(str(tmp_path), split="all", preprocess=ours).images[0]
        resize = v2.Resize(24, interpolation=v2.InterpolationMode(method))
        expected = np.asarray(v2.CenterCrop(21)(resize(picture))).transpose(2, 0, 1)
        assert (found == expected).all()


def test_bad_folders(tmp_path: Path) -> None:
    refused(str(tmp_path / "none"), "does not exist")
    refused(str(tmp_path), "no images")
    write_folder(tmp_path)
    refused(str(tmp_path), "crop=99", preprocess=Preprocess(crop=99, mean=(0.0,), std=(1.0,)))
    Image.new("L", (3, 4)).save(tmp_path / "bag" / "0.png")
    with pytest.raises(InputError, match="resize="):
        data.load(str(tmp_path), split="all", preprocess=GRAY)
    (tmp_path / "bag" / "0.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"bag/0\.png cannot be read"):
        data.load(str(tmp_path), split="all", preprocess=GRAY)


# --- pixels of every kind


def one_image(folder: Path, image: Image.Image, name: str = "0.png") -> str:
    (folder / "bag").mkdir()
    image.save(folder / "bag" / name)
    return str(folder)


@pytest.mark.parametrize("name", ["0.png", "0.tif", "0.pgm"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_are_scaled_to_8(tmp_path: Path, name: str, channels: int) -> None:
    eight = np.arange(256, dtype=np.uint8).reshape(16, 16)
    spec = one_image(tmp_path, Image.fromarray(eight.astype(np.uint16) * 257), name)
    plain = Preprocess(mean=(0.5,) * channels, std=(0.25,) * channels)
    found = data.load(spec, split="all", preprocess=plain).images[0]
    assert (found == eight).all()


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_32_bits_are_of_no_known_range(tmp_path: Path, kind: type) -> None:
    one_image(tmp_path, Image.fromarray(np.zeros((4, 4), kind)), "0.tif")
    with pytest.raises(InputError, match="32 bits per value"):
        data.load(str(tmp_path), split="all", preprocess=GRAY)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
@pytest.mark.parametrize("channels", [1, 3])
def test_other_modes_are_as_torchvision_converts_them(
    tmp_path: Path, mode: str, channels: int
) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).convert(mode)
    name = "0.png" if mode in ("1", "L", "LA", "P", "RGB", "RGBA") else "0.tif"
    spec = one_image(tmp_path, image, name)
    plain = Preprocess(mean=(0.5,) * channels, std=(0.25,) * channels)
    found = data.load(spec, split="all", preprocess=plain).images[0]
    with Image.open(tmp_path / "bag" / name) as opened:
        expected = np.atleast_3d(np.asarray(opened.convert("L" if channels == 1 else "RGB")))
    assert (found == expected.transpose(2, 0, 1)).all()


def test_mean_and_std_of_pixels_of_0_to_255() -> None:
    with pytest.raises(InputError, match=r"123\.7 is no mean or std .*scale=255"):
        Preprocess.parse("mean=123.7,std=58.4")
    found = Preprocess.parse("scale=255,mean=123.7,std=58.4")
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    expected = (torch.from_numpy(pixels).float() - 123.7) / 58.4
    assert torch.allclose(found.normalize(pixels), expected, atol=1e-5)
    assert Preprocess.parse(str(found)) == found
    assert Preprocess.parse("scale=1,mean=0.5,std=0.25") == GRAY
    caffe = Preprocess.parse("scale=255,mean=103.9/116.8/123.7,std=1/1/1")
    assert caffe.std[0] == pytest.approx(1 / 255)
    unscaled = Preprocess.parse("scale=255,mean=0,std=1")
    assert unscaled.normalize(pixels).max() == pytest.approx(255)
    for text in ("scale=2,mean=1,std=1", "scale=255,mean=x,std=1", "scale=255,mean=1"):
        with pytest.raises(InputError, match="--preprocess"):
            Preprocess.parse(text)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("scale=255,mean=0.5,std=0.5", "these are for 0 to 1"),
        ("scale=255,mean=0/0/0.4,std=1/1/1", "these are for 0 to 1"),
        ("scale=255,mean=0,std=0.25", "these are for 0 to 1"),
        ("scale=255,range=any,mean=123,std=58", "leave out scale"),
    ],
)
def test_a_scale_that_mean_and_std_are_not_of(text: str, word: str) -> None:
    with pytest.raises(InputError, match=word):
        Preprocess.parse(text)


@pytest.mark.parametrize(("least", "most"), [(-2.1, 2.6), (0.0, 1.1), (0.0, 99.0), (-0.1, 1.0)])
def test_floats_beyond_0_to_1_are_taken_where_it_is_said(
    tmp_path: Path, least: float, most: float
) -> None:
    images = np.linspace(least, most, 40 * 4, dtype=np.float32).reshape(40, 1, 2, 2)
    spec = write_npz(tmp_path / "d.npz", 40, images=images)
    with pytest.raises(InputError, match="range=any"):
        data.load(spec, split="all", preprocess=GRAY)
    with pytest.raises(InputError, match="range=any"):
        GRAY.normalize(images)
    plain = Preprocess.parse("range=any,mean=0,std=1")
    found = data.load(spec, split="all", preprocess=plain)
    assert torch.equal(plain.normalize(found.images), torch.from_numpy(found.images))
    assert Preprocess.parse(str(plain)) == plain
    refused(write_npz(tmp_path / "e.npz"), "uint8", preprocess=plain)


def test_floats_of_0_to_1_are_taken_as_before(tmp_path: Path) -> None:
    images = np.linspace(-1e-4, 1 + 1e-4, 40 * 4, dtype=np.float32).reshape(40, 1, 2, 2)
    spec = write_npz(tmp_path / "d.npz", 40, images=images)
    assert len(data.load(spec, split="all", preprocess=GRAY)) == 40


# --- the choice for calibration


@given(st.integers(data.FLOOR, 100), st.integers(0, 2**32 - 1))
def test_calibration_is_a_seeded_choice_without_repeats(count: int, seed: int) -> None:
    images = Images(np.zeros((100, 1, 1, 1), np.uint8), np.arange(100), "test")
    chosen = data.calibration(images, count, seed)
    assert len(set(chosen.labels)) == count
    assert chosen.digest == data.calibration(images, count, seed).digest
    larger = data.calibration(images, 100, seed)
    assert (larger.labels[:count] == chosen.labels).all()


def test_calibration_sets_that_are_too_small() -> None:
    images = Images(np.zeros((20, 1, 1, 1), np.uint8), np.zeros(20, np.int64), "test")
    for source, count, words in [
        (images, 21, "has 20 images"),
        (images, data.FLOOR - 1, "too small"),
        (images.take([]), 32, "has 0 images"),
    ]:
        with pytest.raises(InputError, match=words):
            data.calibration(source, count, 0)


def test_the_permutation_never_changes() -> None:
    assert data.permutation(60_000, 0)[:5].tolist() == [3048, 19563, 58303, 8870, 40228]


# --- preprocessing


def test_parse_is_the_inverse_of_str() -> None:
    for text in ("mean=0.286,std=0.353", "resize=256,crop=224,mean=0.1/0.2/0.3,std=1.0/2.0/3.0"):
        assert str(Preprocess.parse(text)) == text
    imagenet = Preprocess.parse("imagenet")
    assert Preprocess.parse(str(imagenet)) == imagenet
    assert (imagenet.resize, imagenet.crop, imagenet.channels) == (256, 224, 3)


@pytest.mark.parametrize("name", ["p.json", "p.yaml"])
def test_parse_reads_files(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_text('{"mean": [0.5], "std": [0.25]}')
    assert Preprocess.parse(str(file)) == GRAY


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "mean=0.5",
        "mean=0.5,std=0",
        "mean=a,std=1",
        "mean=0.5/0.5,std=1",
        "mean=nan,std=1",
        "mean=0,std=1,crop=0",
        "mean=0,std=1,size=3",
        "missing.json",
    ],
)
def test_preprocessing_that_is_not_understood(text: str) -> None:
    with pytest.raises(InputError) as caught:
        Preprocess.parse(text)
    assert "\n" not in str(caught.value)


def test_published_transforms() -> None:
    assert published_preprocess("modcap.zoo:vgg_tiny") == PREPROCESS
    resnet = published_preprocess("torchvision:resnet18")
    assert (resnet.resize, resnet.crop, resnet.mean) == (256, 224, (0.485, 0.456, 0.406))
    efficient = published_preprocess("torchvision:efficientnet_b0")
    assert efficient.interpolation == "bicubic"
    for architecture in ("pt2", "json:dumps"):
        with pytest.raises(InputError, match="--preprocess"):
            published_preprocess(architecture)


def test_both_sides_are_resized_where_their_ratio_is_not_kept(tmp_path: Path) -> None:
    write_folder(tmp_path, count=8, size=(32, 20))
    plain = Preprocess.parse("resize=16,aspect=squash,mean=0.5,std=0.25")
    assert data.load(str(tmp_path), split="all", preprocess=plain).images.shape[2:] == (16, 16)
    assert Preprocess.parse(str(plain)) == plain
    with pytest.raises(InputError, match="say to which size"):
        Preprocess.parse("aspect=squash,mean=0.5,std=0.25")


def test_transforms_of_timm_that_do_more_than_crop_the_centre() -> None:
    pytest.importorskip("timm", reason="it is no dependency")
    assert published_preprocess("timm:coat_lite_medium_384").aspect == "squash"
    assert published_preprocess("timm:resnet18").aspect == "keep"
    for name in ("deepseek_vit_412m", "vit_large_patch16_sapiens2"):
        with pytest.raises(InputError, match="not known here: choose --preprocess, such as 'res"):
            published_preprocess(f"timm:{name}")


def test_normalize() -> None:
    bytes_ = np.array([0, 255], np.uint8).reshape(2, 1, 1, 1)
    expected = torch.tensor([-2.0, 2.0]).reshape(2, 1, 1, 1)
    assert torch.equal(GRAY.normalize(bytes_), expected)
    assert torch.equal(GRAY.normalize((bytes_ / 255).astype(np.float32)), expected)
