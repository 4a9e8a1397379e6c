"""Each layout on disk gives the samples that its publisher means, and says what it left out."""

import json

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter

from manyeyes.data.readers import (
    Auto,
    Btad,
    DataConfig,
    Folder,
    Mpdd,
    Mtd,
    MvtecAd,
    MvtecLoco,
    Visa,
    layout_of,
    read_image_set,
)
from manyeyes.data.regions import ground_truth_mask, region_masks
from manyeyes.errors import ConfigError, DataError

SIZE = (16, 12)


def picture(path, value=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE, (value, value, value)).save(path)


def mask(path, value=255, box=(2, 3, 6, 7)):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros(SIZE[::-1], np.uint8)
    values[box[1] : box[3], box[0] : box[2]] = value
    Image.fromarray(values).save(path)


def fill(root, *names):
    for name in names:
        (mask if "ground_truth" in name or "/Masks/" in name else picture)(root / name)


def paths(samples):
    return [sample.path.as_posix().split("/set/")[1] for sample in samples]


def words(samples):
    return [(sample.path.stem, sample.defect, sample.group, sample.label) for sample in samples]


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    return folder


@pytest.fixture
def mvtec(root):
    fill(root, "train/good/10.png", "train/good/9.PNG", "train/good/1.jpg", "test/good/0.png", "test/hole/3.jpg")
    fill(root, "test/hole/12.jpg", "test/cut/7.png")
    fill(root, "ground_truth/hole/3_mask.png", "ground_truth/hole/12.png", "ground_truth/cut/7_mask.bmp")
    return root


@pytest.mark.parametrize("config", [MvtecAd(), Mpdd(), Folder()], ids=lambda c: c.kind)
def test_mvtec_ad(mvtec, config):
    found = config.read(mvtec)
    assert (found.name, found.root, found.layout, found.notes) == ("set", mvtec, config.kind, ())
    assert paths(found.train) == ["train/good/1.jpg", "train/good/9.PNG", "train/good/10.png"]
    assert found.validation == ()
    assert words(found.test) == [
        ("0", "good", "good", 0),
        ("7", "cut", "cut", 1),
        ("3", "hole", "hole", 1),
        ("12", "hole", "hole", 1),
    ]
    masks = [region.path.name for sample in found.test for region in sample.regions]
    assert masks == ["7_mask.bmp", "3_mask.png", "12.png"]
    region = found.test[1].regions[0]
    assert (region.whole, region.saturation, region.relative, region.defect) == (False, 1.0, True, "cut")
    assert ground_truth_mask(found.test[1]).sum() == 16


def test_validation_split_of_its_own(mvtec):
    fill(mvtec, "validation/good/5.png")
    assert paths(MvtecAd().read(mvtec).validation) == ["validation/good/5.png"]
    assert paths(Folder().read(mvtec).validation) == ["validation/good/5.png"]


def test_missing_masks_are_noted(mvtec):
    (mvtec / "ground_truth/hole/3_mask.png").unlink()
    found = MvtecAd().read(mvtec)
    assert found.notes == ("1 of 3 defective pictures have no mask: 3.jpg",)
    assert found.test[2].regions == ()
    for file in (mvtec / "ground_truth").rglob("*.*"):
        file.unlink()
    assert MvtecAd().read(mvtec).notes == ("no masks: figures at image level only",)


def test_hidden_files_are_ignored_and_others_noted(mvtec):
    for name in (".DS_Store", "._9.png", "Thumbs.db", "notes.txt"):
        (mvtec / "train/good" / name).write_text("x")
    (mvtec / "test" / ".cache").mkdir()
    found = MvtecAd().read(mvtec)
    assert len(found.train) == 3
    assert found.notes == ("left out 2 files without an image extension: notes.txt, Thumbs.db",)


def test_mask_without_picture(mvtec):
    fill(mvtec, "ground_truth/hole/4_mask.png")
    for config in (MvtecAd(), Auto(), Folder()):
        with pytest.raises(DataError, match=r"hole/4_mask\.png: mask without a picture; expected one called 4 "):
            config.read(mvtec)
    (mvtec / "ground_truth/hole/4_mask.png").unlink()
    fill(mvtec, "ground_truth/scratch/4_mask.png")
    for config in (MvtecAd(), Folder()):
        with pytest.raises(DataError, match=r"scratch/4_mask\.png: mask without a picture; there is no test folder"):
            config.read(mvtec)


def test_two_masks_of_one_picture(mvtec):
    fill(mvtec, "ground_truth/hole/3.png")
    with pytest.raises(DataError, match=r"3\.png and 3_mask\.png are masks of one picture"):
        MvtecAd().read(mvtec)


def test_masks_of_good_parts_are_not_read(mvtec):
    fill(mvtec, "ground_truth/good/0_mask.png")
    found = MvtecAd().read(mvtec)
    assert found.test[0].regions == ()
    assert found.notes == ()


def test_upper_case_folders(root):
    fill(root, "Train/Good/1.PNG", "Test/Good/1.png", "Test/Hole/2.png", "Ground_Truth/HOLE/x.txt.png")
    (root / "Ground_Truth/HOLE/x.txt.png").rename(root / "Ground_Truth/HOLE/2_MASK.PNG")
    found = MvtecAd().read(root)
    assert (len(found.train), words(found.test)[1][1]) == (1, "Hole")
    assert found.test[1].regions


def test_btad(root):
    fill(root, "train/ok/1.bmp", "test/ok/2.bmp", "test/ko/3.bmp", "ground_truth/ko/3.png")
    for config in (Btad(), Auto()):
        found = config.read(root)
        assert (found.layout, len(found.train)) == ("btad", 1)
        assert words(found.test) == [("2", "good", "good", 0), ("3", "ko", "ko", 1)]
        assert found.test[1].regions[0].path.name == "3.png"


def test_a_test_folder_of_good_parts_is_never_a_defect(root):
    """train/good beside test/ok would otherwise turn good parts into defects without a word."""
    fill(root, "train/good/1.png", "test/ok/2.png", "test/nok/3.png")
    assert words(Auto().read(root).test) == [("2", "good", "good", 0), ("3", "nok", "nok", 1)]
    with pytest.raises(DataError, match="cannot be called ok"):
        Folder(defective=("test/ok",)).read(root)


TABLE = [
    {"defect_name": "missing", "pixel_value": 255, "saturation_threshold": 10, "relative_saturation": False},
    {"defect_name": "bent", "pixel_value": 254, "saturation_threshold": 0.5, "relative_saturation": True},
]


@pytest.fixture
def loco(root):
    fill(root, "train/good/0.png", "validation/good/0.png", "test/good/0.png", "test/structural_anomalies/0.png")
    fill(root, "test/logical_anomalies/0.png", "test/logical_anomalies/1.png")
    mask(root / "ground_truth/logical_anomalies/0/000.png", 255)
    mask(root / "ground_truth/logical_anomalies/0/001.png", 254, (8, 8, 10, 10))
    mask(root / "ground_truth/logical_anomalies/1/000.png", 255)
    mask(root / "ground_truth/structural_anomalies/0/000.png", 254)
    (root / "defects_config.json").write_text(json.dumps(TABLE))
    return root


@pytest.mark.parametrize("config", [MvtecLoco(), Auto()], ids=lambda c: c.kind)
def test_loco(loco, config):
    found = config.read(loco)
    assert (found.layout, len(found.train), len(found.validation)) == ("mvtec-loco", 1, 1)
    assert words(found.test) == [
        ("0", "good", "good", 0),
        ("0", "bent+missing", "logical_anomalies", 1),
        ("1", "missing", "logical_anomalies", 1),
        ("0", "bent", "structural_anomalies", 1),
    ]
    first, second = found.test[1].regions
    assert (first.defect, first.whole, first.saturation, first.relative) == ("missing", True, 10, False)
    assert (second.defect, second.whole, second.saturation, second.relative) == ("bent", True, 0.5, True)
    assert [area for _, area in region_masks(found.test[1])] == [10, 2]


def test_loco_value_that_is_not_in_the_table(loco):
    mask(loco / "ground_truth/logical_anomalies/1/000.png", 9)
    with pytest.raises(DataError, match=r"1/000\.png: pixel value 9 is not in defects_config\.json; it has 254, 255"):
        MvtecLoco().read(loco)


def test_loco_mask_of_two_values(loco):
    values = np.zeros(SIZE[::-1], np.uint8)
    values[0, 0], values[5, 5] = 255, 254
    Image.fromarray(values).save(loco / "ground_truth/logical_anomalies/1/000.png")
    with pytest.raises(DataError, match=r"000\.png: holds the values 254 and 255; a mask file is one region"):
        MvtecLoco().read(loco)


def test_loco_mask_without_picture(loco):
    mask(loco / "ground_truth/logical_anomalies/7/000.png")
    with pytest.raises(DataError, match=r"7/000\.png: mask without a picture; there is no test picture called 7"):
        MvtecLoco().read(loco)


def test_loco_masks_of_a_group_without_pictures(loco):
    mask(loco / "ground_truth/other_anomalies/0/000.png")
    with pytest.raises(DataError, match=r"0/000\.png: mask without a picture; there is no test folder called other"):
        MvtecLoco().read(loco)


def test_loco_copies_with_one_mask_file_beside_the_folders(loco):
    picture(loco / "test/logical_anomalies/2.png")
    mask(loco / "ground_truth/logical_anomalies/2.png", 254)
    assert words(MvtecLoco().read(loco).test)[3] == ("2", "bent", "logical_anomalies", 1)


@pytest.mark.parametrize(
    ("text", "reason"),
    [("{", "cannot be read as JSON"), ('[{"pixel_value": 1}]', "0.defect_name: this field is required")],
)
def test_loco_broken_table(loco, text, reason):
    (loco / "defects_config.json").write_text(text)
    with pytest.raises(DataError, match=rf"defects_config\.json: {reason}"):
        MvtecLoco().read(loco)


def test_loco_without_table_saturates_at_the_whole_area(loco):
    (loco / "defects_config.json").unlink()
    found = Auto().read(loco)
    assert found.notes == (
        "recognised as mvtec-loco: found test/logical_anomalies",
        "no defects_config.json: every region saturates at its whole area, sPRO is not official",
    )
    assert words(found.test)[1] == ("0", "logical_anomalies", "logical_anomalies", 1)
    assert [area for _, area in region_masks(found.test[1])] == [16, 4]


def test_loco_merged_masks_do_not_all_become_the_defect_called_255(loco):
    """Copies with one 0/255 mask per picture keep the table: every defect would be the one with value 255."""
    for index in range(2, 12):
        picture(loco / f"test/logical_anomalies/{index}.png")
        mask(loco / f"ground_truth/logical_anomalies/{index}/000.png", 255)
    assert "missing" in {sample.defect for sample in MvtecLoco(merged=False).read(loco).test}
    mask(loco / "ground_truth/logical_anomalies/0/001.png", 255)
    mask(loco / "ground_truth/structural_anomalies/0/000.png", 255)
    found = MvtecLoco().read(loco)
    assert found.notes[0].startswith("masks are merged to 0 and 255: defects_config.json cannot apply")
    assert {sample.defect for sample in found.test} == {"good", "logical_anomalies", "structural_anomalies"}
    assert {region.saturation for sample in found.test for region in sample.regions} == {1.0}
    assert "missing" in {sample.defect for sample in MvtecLoco(merged=False).read(loco).test}


def test_loco_empty_masks_are_left_out(loco):
    mask(loco / "ground_truth/logical_anomalies/0/001.png", 0)
    found = MvtecLoco().read(loco)
    assert found.notes == ("left out 1 empty masks: 001.png",)
    assert len(found.test[1].regions) == 1


@pytest.fixture
def visa(root):
    images = "candle/Data/Images"
    fill(root, f"{images}/Normal/0.JPG", f"{images}/Normal/1.JPG", f"{images}/Anomaly/0.JPG", f"{images}/Anomaly/1.JPG")
    fill(root, "candle/Data/Masks/Anomaly/0.png", "pcb1/Data/Images/Normal/0.JPG")
    rows = [
        "object,split,label,image,mask",
        f"candle,test,anomaly,{images}/Anomaly/0.JPG,candle/Data/Masks/Anomaly/0.png",
        f"candle,test,anomaly,{images}/Anomaly/1.JPG,",
        f"candle,train,normal,{images}/Normal/1.JPG,",
        f"candle,test,normal,{images}/Normal/0.JPG,",
        "pcb1,train,normal,pcb1/Data/Images/Normal/0.JPG,",
    ]
    (root / "split_csv").mkdir()
    (root / "split_csv/1cls.csv").write_text("\n".join(rows) + "\n")
    return root


def test_visa_as_published(visa):
    readings = [Visa().read(visa / "candle"), Visa(category="candle").read(visa), Auto().read(visa / "candle")]
    for found in [*readings, Visa(category="candle").read(visa / "candle")]:
        assert (found.name, found.layout) == ("candle", "visa")
        assert paths(found.train) == ["candle/Data/Images/Normal/1.JPG"]
        assert sorted(words(found.test)) == [
            ("0", "anomaly", "anomaly", 1),
            ("0", "good", "good", 0),
            ("1", "anomaly", "anomaly", 1),
        ]
        assert found.notes[-1] == "1 of 2 defective pictures have no mask: 1.JPG"
        (with_mask,) = [sample for sample in found.test if sample.regions]
        assert ground_truth_mask(with_mask).sum() == 16


def test_visa_reorganised(root):
    fill(root, "candle/train/good/0.JPG", "candle/test/good/1.JPG", "candle/test/bad/2.JPG")
    fill(root, "candle/ground_truth/bad/2.png")
    for found in (Visa().read(root / "candle"), Visa(category="candle").read(root)):
        assert (found.name, found.layout, len(found.train)) == ("candle", "visa", 1)
        assert words(found.test) == [("1", "good", "good", 0), ("2", "bad", "bad", 1)]
        assert found.test[1].regions


def test_visa_errors(visa):
    for config in (Visa(), Auto()):
        with pytest.raises(DataError, match=r"needs Data/Images .* its subfolders candle, pcb1, or category"):
            config.read(visa)
    with pytest.raises(DataError, match=r"needs the object 'cashew'.* candle, pcb1"):
        Visa(category="cashew").read(visa)
    (visa / "candle/Data/Images/Normal/1.JPG").unlink()
    with pytest.raises(DataError, match=r"1cls\.csv, line 4: .*1\.JPG does not exist"):
        Visa().read(visa / "candle")
    table = visa / "split_csv/1cls.csv"
    table.write_text("object,split\n")
    with pytest.raises(DataError, match=r"1cls\.csv: columns image, label, mask are missing"):
        Visa().read(visa / "candle")
    table.write_text("object,split,label,image,mask\ncandle,val,normal,x,\n")
    with pytest.raises(DataError, match=r"line 2: expected split train or test .* got 'val', 'normal'"):
        Visa().read(visa / "candle")
    table.write_text("object,split,label,image,mask\ncandle,train,anomaly,candle/Data/Images/Anomaly/0.JPG,\n")
    with pytest.raises(DataError, match=r"0\.JPG of the training split is defective"):
        Visa().read(visa / "candle")
    table.unlink()
    with pytest.raises(DataError, match=r"split is missing; expected .*split_csv/1cls\.csv"):
        Visa().read(visa / "candle")


@pytest.fixture
def mtd(root):
    for index in range(10):
        picture(root / f"MT_Free/Imgs/free_{index}.jpg")
        mask(root / f"MT_Free/Imgs/free_{index}.png", 0)
    for name, value in {"MT_Blowhole": 255, "MT_Uneven": 0}.items():
        picture(root / f"{name}/Imgs/a_1.jpg")
        mask(root / f"{name}/Imgs/a_1.png", value)
    return root


@pytest.mark.parametrize("config", [Mtd(), Auto()], ids=lambda c: c.kind)
def test_mtd(mtd, config):
    found = config.read(mtd, seed=3)
    assert (found.layout, len(found.train), len(found.test)) == ("mtd", 8, 4)
    assert words(found.test)[2:] == [("a_1", "blowhole", "blowhole", 1), ("a_1", "uneven", "uneven", 1)]
    assert [bool(sample.regions) for sample in found.test] == [False, False, True, False]
    assert found.notes[-3:] == (
        "no split published: 8 good tiles train, 2 test, by seed 3",
        "1 masks of MT_Uneven are empty and left out: a_1.png",
        "1 of 2 defective pictures have no mask: a_1.jpg",
    )
    assert all(sample.path.suffix == ".jpg" for sample in (*found.train, *found.test))


def test_mtd_split_is_the_seeds(mtd):
    assert Mtd().read(mtd, 0).train == Mtd().read(mtd, 0).train
    assert len({Mtd().read(mtd, seed).train for seed in range(5)}) > 1
    assert len(Mtd(train_fraction=0.5).read(mtd).train) == 5
    assert set(Mtd().read(mtd).train).isdisjoint(Mtd().read(mtd).test)


def test_mtd_mask_without_picture(mtd):
    mask(mtd / "MT_Blowhole/Imgs/b.png")
    with pytest.raises(DataError, match=r"b\.png: mask without a picture"):
        Mtd().read(mtd)


def test_flat_folder_counts_as_train(root):
    fill(root, "2.png", "10.png", "1.png")
    for config in (Folder(), Auto()):
        found = config.read(root)
        assert (found.layout, paths(found.train), found.test) == ("folder", ["1.png", "2.png", "10.png"], ())
        assert found.notes[-2:] == (
            "all pictures directly in the folder count as good",
            "no test pictures: the set can train but not evaluate",
        )
    fill(root, "train/1.png")
    assert paths(Auto().read(root).train) == ["train/1.png"]


def test_one_training_picture_is_enough_to_read(root):
    fill(root, "1.png")
    assert len(Auto().read(root).train) == 1


def test_folders_named_in_the_config(root):
    fill(root, "a/1.png", "b/2.png", "fine/3.png", "scratched/4.png", "broken/4.png", "cal/5.png")
    mask(root / "marks1/4.png")
    mask(root / "marks2/4_mask.png")
    config = Folder(
        train=("a", "b"), good=("fine",), defective=("scratched", "broken"), masks=("marks1", "marks2"),
        validation=("cal",),
    )  # fmt: skip
    found = config.read(root)
    assert paths(found.train) == ["a/1.png", "b/2.png"]
    assert paths(found.validation) == ["cal/5.png"]
    assert [(s.defect, [r.path.parent.name for r in s.regions]) for s in found.test] == [
        ("good", []),
        ("scratched", ["marks1"]),
        ("broken", ["marks2"]),
    ]
    with pytest.raises(DataError, match=r"nowhere: does not exist or is no folder; it is named in the data config"):
        Folder(train=("nowhere",)).read(root)
    with pytest.raises(DataError, match="masks names 3 folders for 2 folders of defective pictures"):
        Folder(train=("a",), defective=("scratched", "broken"), masks=("a", "b", "cal")).read(root)


def test_folder_with_all_masks_side_by_side(root):
    fill(root, "train/1.png", "test/hole/3.png")
    mask(root / "masks/3.png")
    assert Folder().read(root).test[0].regions
    fill(root, "test/cut/4.png")
    with pytest.raises(DataError, match="masks: holds masks of 2 defects side by side; expected a subfolder for each"):
        Folder().read(root)


def test_no_training_picture(root):
    fill(root, "train/good/1.png", "test/good/0.png")
    (root / "train/good/1.png").unlink()
    for config in (MvtecAd(), Auto(), Folder()):
        with pytest.raises(DataError, match=r"set: no picture of a good part to train on; looked for .*train/good"):
            config.read(root)


@pytest.mark.parametrize(
    ("config", "folder"),
    [(MvtecAd(), "train/good"), (MvtecLoco(), "train/good"), (Btad(), "train/ok"), (Mtd(), "MT_Free")],
    ids=lambda c: getattr(c, "kind", ""),
)
def test_missing_folder_is_named(root, config, folder):
    fill(root, "pictures/1.png")
    with pytest.raises(DataError, match=rf"needs the folder {folder}, which is missing; found pictures"):
        config.read(root)


def test_roots_that_are_no_image_set(tmp_path, mvtec):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for config in (Auto(), Folder(), Visa()):
        with pytest.raises(DataError, match="missing: does not exist; expected the folder of an image set"):
            config.read(tmp_path / "missing")
        with pytest.raises(DataError, match="file: is a file"):
            config.read(tmp_path / "file")
        with pytest.raises(DataError) as caught:
            config.read(tmp_path / "empty")
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"no known layout; looked for train/good.*lie in its subfolders set: give one"):
        Auto().read(mvtec.parent)


def test_folders_that_auto_does_not_know_are_named(root):
    fill(root, "OK/1.png", "OK/2.png", "NG/3.png")
    with pytest.raises(DataError, match=r"no known layout; .*found NG, OK: .*name those of good .* in a YAML file"):
        read_image_set(root)
    found = Folder(train=("OK",), defective=("NG",)).read(root)
    assert (len(found.train), words(found.test)) == (2, [("3", "NG", "NG", 1)])


def test_auto_says_what_it_recognised(mvtec):
    found = read_image_set(mvtec)
    assert (found.layout, found.notes) == ("mvtec-ad", ("recognised as mvtec-ad: found train/good and test",))
    assert found.test == MvtecAd().read(mvtec).test


def test_a_set_of_12_bit_pictures_is_noted(root):
    Image.fromarray(np.full((16, 16), 4000, np.uint16)).save(root / "1.png")
    assert "set frame.bits: 12" in read_image_set(root).notes[-1]
    Image.fromarray(np.full((16, 16), 40000, np.uint16)).save(root / "1.png")
    assert "frame.bits" not in read_image_set(root).notes[-1]
    (root / "1.png").write_bytes(b"broken")  # reported when it is loaded
    assert len(read_image_set(root).train) == 1


def test_reading_opens_no_picture(mvtec):
    for file in mvtec.rglob("*.*"):
        file.write_bytes(b"")
    assert len(Auto().read(mvtec).test) == 4


def test_layout_by_its_kind():
    assert layout_of("mpdd") == Mpdd()
    with pytest.raises(ConfigError, match=r"layout .mvtec.: .*unknown kind 'mvtec'; allowed: 'folder', 'mvtec-ad'"):
        layout_of("mvtec")


def test_layout_from_a_file(root, tmp_path):
    fill(root, "normal/1.png", "checked/2.png", "dents/3.png", "dents/4.png", "stains/5.png")
    for name in ("marks/dents/3.png", "marks/stains/5_mask.png"):
        mask(root / name)
    file = tmp_path / "parts.yaml"
    file.write_text("{kind: folder, train: normal, good: [checked], defective: [dents, stains], masks: [marks]}")
    found = read_image_set(root, layout_of(str(file)))
    assert paths(found.train) == ["normal/1.png"]
    assert [(stem, defect) for stem, defect, _, _ in words(found.test)] == [
        *(("2", "good"), ("3", "dents"), ("4", "dents"), ("5", "stains"))
    ]
    assert [len(sample.regions) for sample in found.test] == [0, 1, 0, 1]
    assert layout_of(str(file)) == Folder(
        train=("normal",), good=("checked",), defective=("dents", "stains"), masks=("marks",)
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{kind: folder, trian: [normal]}", r"trian: unknown field.*has the fields kind, train, validation, good, def"),
        ("{kind: folder, train: 3}", r"train: .*got 3"),
        ("{kind: fold}", r"unknown kind 'fold'; allowed: 'folder'"),
        ("{train: [normal]}", r"the field 'kind' is missing"),
        ("[normal]", r"expected a mapping of fields, found list"),
        ("{kind: folder", r"is no valid YAML"),
    ],
)
def test_a_bad_layout_file_is_one_line(tmp_path, text, expected):
    file = tmp_path / "parts.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=rf"parts\.yaml: .*{expected}") as caught:
        layout_of(str(file))
    assert "\n" not in str(caught.value)


def test_a_layout_that_names_what_is_not_there(root, tmp_path):
    fill(root, "train/good/1.png")
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read"):
        layout_of(str(tmp_path / "none.yaml"))
    with pytest.raises(DataError, match=r"normal: does not exist or is no folder; it is named in the data config"):
        Folder(train=("normal",)).read(root)
    with pytest.raises(ConfigError, match=r"unknown kind 'mvtec'.*or give a YAML file"):
        layout_of("mvtec")


def test_config_union():
    union = TypeAdapter(DataConfig)
    for kind in ("folder", "mvtec-ad", "mvtec-loco", "visa", "mpdd", "btad", "mtd", "auto"):
        config = union.validate_python({"kind": kind})
        assert union.validate_python(config.model_dump()) == config
        with pytest.raises(ConfigError, match="unknown field"):
            type(config).parse({"kind": kind, "rooot": 1})


def test_visa_object_from_within_and_through_a_link(visa, tmp_path, monkeypatch):
    expected = read_image_set(visa / "candle")
    monkeypatch.chdir(visa / "candle")
    for folder in (".", "../candle"):
        found = read_image_set(folder)
        assert (found.name, len(found.train), len(found.test)) == ("candle", len(expected.train), len(expected.test))
    link = tmp_path / "candle"
    link.symlink_to(visa / "candle")
    assert len(read_image_set(link).test) == len(expected.test)
    monkeypatch.chdir(visa / "candle" / "Data")
    assert read_image_set("..").name == "candle"


def test_masks_beside_their_pictures_are_no_pictures(root):
    fill(root, "train/good/1.png", "train/good/2.png", "test/good/3.png")
    picture(root / "train/good/1_mask.png", 0)
    picture(root / "test/hole/4.png")
    mask(root / "test/hole/4_mask.png")
    for config in (MvtecAd(), Folder()):
        found = read_image_set(root, config)
        assert paths(found.train) == ["train/good/1.png", "train/good/2.png"]
        assert words(found.test) == [("3", "good", "good", 0), ("4", "hole", "hole", 1)]
        assert found.test[1].regions[0].path.name == "4_mask.png"
        assert "left out 1 masks beside pictures: 1_mask.png" in found.notes


def test_pictures_in_subfolders_are_noted(root):
    fill(root, "train/good/1.png", "train/good/cam/2.png", "test/good/3.png", "test/hole/4.png", "test/hole/b/5.png")
    found = read_image_set(root)
    assert len(found.train) == 1
    for folder in ("train/good/cam", "test/hole/b"):
        assert any(note.startswith("left out 1 picture in") and folder in note for note in found.notes)


@pytest.mark.parametrize("config", [Auto(), MvtecAd(), Folder()], ids=lambda c: c.kind)
def test_good_pictures_in_subfolders_alone_are_taken(root, config):
    fill(root, "train/good/cam2/1.png", "train/good/cam10/1.png", "train/good/cam10/2.png", "test/hole/4.png")
    (root / "train/good/spare").mkdir()
    fill(root, "validation/good/cam2/7.png", "test/good/cam2/8.png", "train/good/cam2/deeper/9.png")
    for name in ("train/good/masks/1.png", "train/good/cam10/1_mask.png"):
        mask(root / name)
    found = read_image_set(root, config)
    assert paths(found.train) == ["train/good/cam2/1.png", "train/good/cam10/1.png", "train/good/cam10/2.png"]
    assert paths(found.validation) == ["validation/good/cam2/7.png"]
    assert paths(found.test) == ["test/hole/4.png"], "two test pictures must not have one name"
    assert "left out 2 masks beside pictures: 1.png, 1_mask.png" in found.notes
    assert f"took 3 pictures from 2 subfolders of {root / 'train/good'}: cam2, cam10" in found.notes
    assert any("left out 1 picture in" in note and "cam2/deeper" in note for note in found.notes)


def test_subfolders_of_a_folder_that_is_not_called_good(root):
    fill(root, "train/cam1/1.png", "train/cam1/2.png", "train/cam2/3.png")
    with pytest.raises(DataError, match=r"no picture of a good part.*left out 2 pictures in .*cam1.*1 pic.*cam2"):
        read_image_set(root)
    with pytest.raises(DataError, match=r"name the folders in a YAML file for --layout"):
        read_image_set(root)
    assert len(read_image_set(root, Folder(train=("train",))).train) == 3
    fill(root, "train/good/2026/cam1/1.png", "test/hole/4.png")
    with pytest.raises(DataError, match=r"train on.*left out 1 picture deep in the subfolder .*2026; name"):
        read_image_set(root)


@pytest.mark.parametrize("folder", ["validation/good", "validation/ok", "validation", "val", "val/normal", "VAL/good"])
@pytest.mark.parametrize("config", [MvtecAd(), Folder()], ids=lambda c: c.kind)
def test_validation_under_its_usual_names(root, folder, config):
    fill(root, "train/good/1.png", "test/good/3.png", "test/hole/4.png", f"{folder}/5.png")
    assert paths(read_image_set(root, config).validation) == [f"{folder}/5.png"]


@pytest.mark.parametrize(
    "where", ["masks/hole/4.png", "mask/hole/4.png", "masks/4_mask.png", "ground_truth/4_mask.png"]
)
def test_masks_under_their_usual_names(root, where):
    fill(root, "train/good/1.png", "test/good/3.png", "test/hole/4.png")
    mask(root / where)
    found = read_image_set(root)
    assert found.layout == "mvtec-ad"
    assert [region.path for region in found.test[1].regions] == [root / where]


@pytest.mark.parametrize("word", ["masks", "ground_truth", "Masks", "groundtruth"])
@pytest.mark.parametrize("where", ["{}/hole/4_mask.png", "{}/4.png"])
def test_masks_within_test_are_no_defect(root, word, where):
    """The folder of masks became a defect of its own, and the defect lost its masks."""
    fill(root, "train/good/1.png", "test/good/3.png", "test/hole/4.png")
    mask(root / "test" / where.format(word))
    for config in (Auto(), Folder()):
        found = read_image_set(root, config)
        assert words(found.test) == [("3", "good", "good", 0), ("4", "hole", "hole", 1)]
        assert [region.path for region in found.test[1].regions] == [root / "test" / where.format(word)]


def test_a_folder_within_test_that_is_named_as_masks_is_no_defect(root):
    fill(root, "train/good/1.png", "test/good/3.png", "test/hole/4.png")
    mask(root / "test/drawn/4.png")
    found = Folder(masks=("test/drawn",)).read(root)
    assert words(found.test) == [("3", "good", "good", 0), ("4", "hole", "hole", 1)]
    assert found.test[1].regions


def test_a_defect_may_be_called_mask(root):
    """Printed circuit boards have solder masks."""
    fill(root, "train/good/1.png", "test/good/3.png", "test/mask/4.png", "test/masks/5.png", "ground_truth/masks/5.png")
    assert [defect for _, defect, _, _ in words(read_image_set(root).test)] == ["good", "mask", "masks"]


@pytest.mark.parametrize("config", [Auto(), MvtecAd(), Folder()], ids=lambda c: c.kind)
def test_mvtec_ad_2(root, config):
    """Its test pictures were not found at all."""
    fill(root, "train/good/000_regular.png", "validation/good/001_regular.png", "test_private/000_regular.png")
    fill(root, "test_public/good/000_shift_1.png", "test_public/bad/000_overexposed.png")
    fill(root, "test_public/ground_truth/bad/000_overexposed_mask.png")
    found = read_image_set(root, config)
    assert (len(found.train), len(found.validation)) == (1, 1)
    assert words(found.test) == [("000_shift_1", "good", "good", 0), ("000_overexposed", "bad", "bad", 1)]
    assert ground_truth_mask(found.test[1]).sum() == 16


@pytest.mark.parametrize("config", [Auto(), MvtecAd(), Folder()], ids=lambda c: c.kind)
def test_folders_of_other_names_are_noted(root, config):
    """Masks and test pictures in them were lost without a word."""
    fill(root, "train/good/1.png", "test/good/3.png", "test/hole/4.png", "labels/hole/4.png", "more tests/5.png")
    (root / "docs").mkdir()
    (root / "docs/readme.txt").touch()
    found = read_image_set(root, config)
    assert "left out the folders labels, more tests" in found.notes
    named = Folder(good=("test/good", "more tests"), defective=("test/hole",), masks=("labels",))
    assert not any("left out" in note for note in named.read(root).notes)


def test_folders_beside_those_of_good_parts_are_noted(root):
    fill(root, "train/good/1.png", "train/bad/2.png", "val/good/3.png", "val/bad/4.png", "test/good/5.png")
    for config in (Auto(), Folder()):
        found = read_image_set(root, config)
        assert (paths(found.train), paths(found.validation)) == (["train/good/1.png"], ["val/good/3.png"])
        assert {"left out the folder bad in train", "left out the folder bad in val"} <= set(found.notes)


def test_linked_folders_are_not_noted_as_left_out(root, tmp_path):
    fill(root, "test/good/3.png", "test/hole/4.png")
    fill(tmp_path / "elsewhere", "1.png", "2.png")
    (root / "train").mkdir()
    (root / "train/good").symlink_to(tmp_path / "elsewhere")
    spelt = Folder(train=("../elsewhere",), good=("../set/test/good",))
    for found in (MvtecAd().read(root), spelt.read(root)):
        assert (len(found.train), words(found.test)) == (2, [("3", "good", "good", 0), ("4", "hole", "hole", 1)])
        assert not any("left out" in note for note in found.notes)


def test_pictures_directly_in_test_are_noted(root):
    fill(root, "train/1.png", "test/2.png")
    for config in (Auto(), Folder()):
        notes = read_image_set(root, config).notes
        assert "left out 1 picture directly in test: only its subfolders say what is good" in notes
    assert not any("left out" in note for note in Folder(good=("test",)).read(root).notes)


@pytest.mark.parametrize("config", [Auto(), MvtecAd(), Folder()], ids=lambda c: c.kind)
def test_masks_beside_pictures_under_their_very_names(root, config):
    """Masks called as in the magnetic-tile set or in Real-IAD were defective pictures, without a word."""
    fill(root, "train/good/1.jpg", "train/good/1.png", "train/good/2.jpg", "test/good/3.jpg", "test/hole/4.jpg")
    found = read_image_set(root, config)
    assert len(found.train) == 3, "they may be parts from two cameras"
    assert any("2 pictures of" in note and "share their names: 1.jpg, 1.png; " in note for note in found.notes)
    mask(root / "test/hole/4.png")
    with pytest.raises(DataError, match=r"test/hole: 4\.jpg and 4\.png have one name; call the mask .* 4_mask, or re"):
        read_image_set(root, config)
    (root / "test/hole/4.png").rename(root / "test/hole/4_mask.png")
    assert ground_truth_mask(read_image_set(root, config).test[1]).sum() == 16


def test_a_mask_of_two_pictures_of_one_name_is_refused(root):
    """Both were given the same mask."""
    fill(root, "train/good/1.png", "test/hole/4.png", "test/hole/4.jpg", "ground_truth/hole/4.png")
    with pytest.raises(DataError, match=r"4\.jpg and 4\.png have one name"):
        read_image_set(root)


def test_masks_in_a_folder_for_each_picture_are_noted(root):
    """Masks as in MVTec LOCO, of defects that it does not have, were lost without a word."""
    fill(root, "train/good/1.png", "test/good/3.png", "test/hole/4.png", "ground_truth/hole/4/000.png")
    for config in (Auto(), Folder()):
        found = read_image_set(root, config)
        assert not found.test[1].regions
        assert f"left out 1 mask in subfolders of {root / 'ground_truth/hole'}" in found.notes


def test_test_pictures_alone_where_nothing_is_trained(root):
    fill(root, "test/good/3.png", "test/hole/4.png")
    assert words(read_image_set(root, train=False).test) == [("3", "good", "good", 0), ("4", "hole", "hole", 1)]
    with pytest.raises(DataError, match="no picture of a good part to train on"):
        read_image_set(root)


def test_masks_find_their_picture_whatever_the_case(root):
    fill(root, "train/good/1.png", "test/good/3.png", "test/hole/IMG_4.JPG")
    mask(root / "ground_truth/hole/img_4_MASK.png")
    assert read_image_set(root).test[1].regions


@pytest.mark.parametrize(("train", "defective"), [(".", "dents"), ("parts", "parts/dents")])
def test_folders_named_as_defective_are_never_trained_on(root, train, defective):
    inside = root / ("parts" if train == "parts" else ".")
    fill(inside / "normal", "0.png", "1.png")
    fill(inside / "dents", "2.png", "3.png")
    found = Folder(train=(train,), defective=(defective,)).read(root)
    assert [sample.path.parent.name for sample in found.train] == ["normal", "normal"]
    assert [sample.path.parent.name for sample in found.test] == ["dents", "dents"]


def test_one_picture_in_two_splits_is_refused(root):
    fill(root / "parts", "0.png", "1.png")
    with pytest.raises(DataError, match=r"parts/0\.png: would be both a training and a test picture"):
        Folder(train=("parts",), good=("parts",)).read(root)


def test_pictures_too_deep_beside_a_subfolder_that_is_taken_are_noted(root):
    fill(root / "train/good/cam1", "0.png")
    fill(root / "train/good/day2/cam1", "1.png", "2.png")
    fill(root / "test/good", "3.png")
    found = Folder().read(root)
    assert [sample.path.name for sample in found.train] == ["0.png"]
    assert any("left out 2 pictures deep in the subfolder" in note and "day2" in note for note in found.notes)
