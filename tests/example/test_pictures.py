"""Own pictures: brought into the form of the data set, predicted, or doubted."""

import io
import random

import pytest
import torch
from example_runs import DRAWN_PREFIX

import train_fashion
from torch_softmax import uncertainty
from torch_softmax.fashion import data
from torch_softmax.fashion.calibration import compute_features
from torch_softmax.fashion.commands import load_model
from torch_softmax.fashion.drawn import draw_garments
from torch_softmax.fashion.evaluation import compute_accuracy, compute_mirrored_logits
from torch_softmax.fashion.pictures import read_picture

Image = pytest.importorskip("PIL.Image")
ImageDraw = pytest.importorskip("PIL.ImageDraw")
ImageFilter = pytest.importorskip("PIL.ImageFilter")
ImageOps = pytest.importorskip("PIL.ImageOps")


def to_image(pixels):
    """A picture of a tensor of shape (height, width)."""
    height, width = pixels.shape
    content = bytes(pixels.round().to(torch.uint8).flatten().tolist())
    return Image.frombytes("L", (width, height), content)


@pytest.fixture(scope="module")
def garment():
    """A sandal as the data set would have it, uint8 of shape (28, 28)."""
    pixels = draw_garments(10, seed=0)[0][5, 0].float()
    return (pixels * (255 / pixels.max())).round().to(torch.uint8)


@pytest.fixture
def read(tmp_path):
    """Save a picture and read it."""

    def save_and_read(picture, name, **options):
        picture.save(tmp_path / name, **options)
        return read_picture(str(tmp_path / name))

    return save_and_read


def photograph(garment, side=140, size=(200, 300), place=(40, 100), background=255, shade=0):
    """A garment of one shade in front of a background of another."""
    opacity = garment.resize((side, side), Image.Resampling.BICUBIC)
    picture = Image.new("L", size, background)
    picture.paste(shade, place, opacity)
    return picture


def pictures_of(garment):
    """The same garment in the formats of files, and the greatest mean difference of a pixel."""
    photo = photograph(garment).convert("RGB")
    turned = Image.Exif()
    turned[0x0112] = 6
    cut_out = Image.new("RGBA", (140, 140), (0, 0, 0, 0))
    cut_out.putalpha(garment.resize((140, 140), Image.Resampling.BICUBIC))
    deep = Image.frombytes("I;16", (28, 28), b"".join(bytes([0, v]) for v in garment.tobytes()))
    floats = deep.convert("F").point(lambda value: value * 1 / 65535 + 0)
    lossy = {"quality": 95}
    yield "photo.jpg", photo, lossy
    yield "photo.webp", photo, lossy
    yield "turned.jpg", photo.rotate(90, expand=True), lossy | {"exif": turned}
    yield "cmyk.jpg", photo.convert("CMYK"), lossy
    yield "palette.gif", photo.quantize(16), {}
    yield "palette.png", photo.quantize(16), {}
    yield "cut_out.png", cut_out, {}
    yield "cut_out_grey.png", cut_out.convert("LA"), {}
    yield "cut_out_palette.png", cut_out.quantize(16, method=Image.Quantize.FASTOCTREE), {}
    yield "deep.png", deep, {}
    yield "deep.tiff", deep.convert("I"), {}
    yield "floats.tiff", floats, {}


def assert_shows(found, garment, difference=12):
    """A picture in the form of the data set shows the garment."""
    pixels, is_plain = found
    assert pixels.shape == (1, 28, 28) and pixels.dtype == torch.uint8
    assert is_plain
    inside = (pixels > 13)[0]
    assert max(inside.any(0).sum(), inside.any(1).sum()) >= 26
    expected, _ = garment
    mean_difference = (pixels.float() - expected.float()).abs().mean().item()
    assert mean_difference <= difference


def test_pictures_of_every_format_show_the_garment(garment, read):
    expected = read(to_image(garment), "grey.png")
    for name, picture, options in pictures_of(to_image(garment)):
        assert_shows(read(picture, name, **options), expected)


def test_pictures_of_many_pixels_show_the_garment(garment, read):
    photo = photograph(to_image(garment), 1400, (3000, 4000), (700, 1200), 210, 40)
    assert_shows(read(photo, "photo.jpg"), read(to_image(garment), "grey.png"))


# brighter and darker garments, on backgrounds of every brightness
@pytest.mark.parametrize(
    ("shade", "background"),
    [(250, 200), (220, 128), (60, 100), (0, 255), (255, 0), (90, 40), (160, 240), (0, 127)],
)
def test_pictures_show_the_garment_in_any_two_shades(garment, read, shade, background):
    expected = read(to_image(garment), "grey.png")
    picture = photograph(to_image(garment), shade=shade, background=background)
    assert_shows(read(picture, "photo.jpg", quality=90), expected)


@pytest.mark.parametrize("shade", [255, 0, 128])
def test_pictures_with_transparency_show_a_garment_of_any_shade(garment, read, shade):
    opacity = to_image(garment)
    picture = Image.new("LA", (28, 28), (shade, 0))
    picture.putalpha(opacity)
    assert_shows(read(picture, "cut_out.png"), read(opacity, "grey.png"))


@pytest.mark.parametrize("slope", [(25, 0), (0, -25), (15, 20)])
def test_pictures_with_a_gradient_show_the_garment(garment, read, slope):
    photo = torch.frombuffer(
        bytearray(photograph(to_image(garment), background=200).tobytes()), dtype=torch.uint8
    )
    x, y = torch.linspace(-1, 1, 200), torch.linspace(-1, 1, 300).view(-1, 1)
    lit = photo.view(300, 200).float() + slope[0] * x + slope[1] * y
    expected = read(to_image(garment), "grey.png")
    assert_shows(read(to_image(lit.clamp(0, 255)), "photo.png"), expected)


@pytest.mark.parametrize("shade", [20, 250])
def test_pictures_with_a_shadow_show_the_garment(garment, read, shade):
    opacity = to_image(garment).resize((140, 140), Image.Resampling.BICUBIC)
    picture = Image.new("L", (200, 300), 190)
    shadow = Image.new("L", (200, 300), 0)
    shadow.paste(40, (55, 118), opacity.point(lambda value: 255 * (value > 40)))
    picture.paste(0, (0, 0), shadow.filter(ImageFilter.GaussianBlur(12)))
    picture.paste(shade, (40, 100), opacity)
    expected = read(to_image(garment), "grey.png")
    assert_shows(read(picture, "photo.jpg", quality=90), expected, difference=16)


# bars above and below, a frame, none
@pytest.mark.parametrize("border", [(0, 60), (30, 60), (0, 0)])
@pytest.mark.parametrize("color", [0, 255])
def test_pictures_with_a_margin_show_the_garment(garment, read, border, color):
    expected = read(to_image(garment), "grey.png")
    photo = photograph(to_image(garment), background=150, shade=60)
    picture = ImageOps.expand(photo, border, fill=color)
    assert_shows(read(picture, "photo.jpg", quality=90), expected)


def test_pictures_in_black_and_white_show_the_outline(garment, read):
    outline = to_image(garment).point(lambda value: 255 * (value > 13)).convert("1")
    assert_shows(read(outline, "outline.png"), read(to_image(garment), "grey.png"), difference=60)


def test_pictures_that_are_blank_are_black_and_noise_has_no_plain_background(read):
    assert read(Image.new("L", (50, 50), 200), "blank.png")[0].max() == 0
    assert not read(Image.effect_noise((64, 64), 200), "noise.png")[1]


def compose(garment, rng):
    """A garment at a random scale and place, in two random shades, with noise, compressed."""
    side = rng.randint(84, 200)
    size = [int(side * rng.uniform(1.1, 2.5)) for _ in range(2)]
    place = tuple(rng.randint(0, n - side) for n in size)
    background = rng.randint(0, 255)
    shade = rng.choice([v for v in range(256) if abs(v - background) >= 40])
    picture = photograph(to_image(garment), side, size, place, background, shade)
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).float()
    pixels += rng.uniform(0, 5) * torch.randn(pixels.shape)
    file = io.BytesIO()
    to_image(pixels.clamp(0, 255).view(size[1], size[0])).save(
        file, rng.choice(["JPEG", "WEBP"]), quality=rng.randint(60, 95)
    )
    return Image.open(file)


def test_pictures_that_are_composed_are_predicted_like_the_originals(real_run, read):
    model = load_model(real_run, torch.device("cpu"), train_fashion.build).model
    images, labels = data.read_split(data.DEBIAN_FOLDER, "t10k")
    # of fifty, a few that a short training leaves undecided would already be the three points
    images, labels = images[:300], labels[:300]
    rng = random.Random(0)
    composed = torch.stack(
        [read(compose(image[0], rng).convert("RGB"), "photo.png")[0] for image in images]
    )
    accuracy, original = (
        compute_accuracy(compute_mirrored_logits(model, x), labels) for x in (composed, images)
    )
    print(f"{accuracy:.2f} of the composed pictures, {original:.2f} of the originals")
    assert accuracy >= original - 0.03


def auroc(usual, unusual):
    """The probability that an unusual image has the larger score."""
    return (unusual.view(-1, 1) > usual).float().mean().item()


def test_outliers_are_farther_from_the_training_data_than_garments(real_run):
    drawn_outliers = pytest.importorskip("drawn_outliers")
    model, calibration, *_ = load_model(real_run, torch.device("cpu"), train_fashion.build)
    images, _ = data.read_split(data.DEBIAN_FOLDER, "t10k")
    known = calibration.features.float()
    assert len(known) == 2_000

    def score(images):
        return uncertainty.nearest_neighbor_distance(compute_features(model, images), known)

    usual = score(images[:1000])
    for name in ("noise", "digits", "shapes"):
        images = getattr(drawn_outliers, name)()
        print(f"AUROC of {name}: {auroc(usual, score(images)):.3f}")
    assert auroc(usual, score(drawn_outliers.noise())) > 0.98
    assert auroc(usual, score(drawn_outliers.digits())) > 0.95
    assert auroc(usual, score(drawn_outliers.shapes())) > 0.93


def test_outliers_are_flagged_and_garments_are_not(real_run):
    drawn_outliers = pytest.importorskip("drawn_outliers")
    trained = load_model(real_run, torch.device("cpu"), train_fashion.build)
    images, _ = data.read_split(data.DEBIAN_FOLDER, "t10k")
    noise, digits = drawn_outliers.noise(), drawn_outliers.digits()
    is_unusual = trained.calibration.is_unusual
    assert is_unusual(trained.model, images[:2000]).float().mean() < 0.02
    assert is_unusual(trained.model, noise).all()
    assert is_unusual(trained.model, torch.zeros_like(noise)).all()
    assert is_unusual(trained.model, digits).float().mean() > 0.6


def test_predict_names_the_likeliest_classes_and_cautions(capsys, finished_run, garment, tmp_path):
    checkpoint = ["--checkpoint", str(finished_run[0] / "checkpoint.pt"), "--device", "cpu"]
    files = [str(tmp_path / name) for name in ("photo.jpg", "blank.png", "noise.png")]
    pictures = [photograph(to_image(garment)), Image.new("L", (50, 50), 200)]
    pictures.append(Image.effect_noise((64, 64), 200))
    for file, picture in zip(files, pictures, strict=True):
        picture.save(file)
    prediction = train_fashion.main(["predict", *files, *checkpoint])
    about_model, *lines = capsys.readouterr().out.splitlines()
    assert about_model == f"{DRAWN_PREFIX}model of {checkpoint[1]}, trained for 30 steps"
    assert prediction.probabilities.shape == (3, 10)
    for line, path in zip(lines, files, strict=True):
        assert line.startswith(f"{DRAWN_PREFIX}{path}: ")
        assert line.count("%") == 3 and "entropy" in line
    assert "unlike the training data" not in lines[0] and "plain background" not in lines[0]
    assert ("not sure" in lines[0]) == (prediction.confidence[0].item() < 0.6)
    assert "unlike the training data" in lines[1]
    assert "these numbers mean little" in lines[2]


def test_predict_answers_for_the_other_pictures_when_one_is_missing(
    capsys, finished_run, garment, tmp_path
):
    files = [str(tmp_path / "missing.png"), str(tmp_path / "grey.png")]
    to_image(garment).save(files[1])
    code = train_fashion.run(["predict", *files, "--checkpoint", str(finished_run[0])])
    output, errors = capsys.readouterr()
    assert code == 3
    assert files[1] in output and "entropy" in output
    assert files[0] in errors and errors.count("\n") == 1


def test_predict_calibrates_a_checkpoint_of_an_unfinished_run(
    capsys, finished_run, run_folder, garment, tmp_path
):
    to_image(garment).save(tmp_path / "grey.png")
    (run_folder / "checkpoint.pt").unlink()
    argv = ["predict", str(tmp_path / "grey.png"), "--checkpoint"]
    # the previous checkpoint has the same weights, and no calibration
    found = train_fashion.main([*argv, str(run_folder)])
    assert "checkpoint.previous.pt is used instead" in capsys.readouterr().out
    expected = train_fashion.main([*argv, str(finished_run[0])])
    torch.testing.assert_close(found.probabilities, expected.probabilities)
