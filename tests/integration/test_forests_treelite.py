"""What Triton 24.10's FIL reads forests with is Treelite 4.3: it reads our checkpoints, and answers what we say."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import lightgbm
import numpy as np
from environments import python_with
from forest_parity import rows_of
from sklearn.ensemble import RandomForestClassifier

from tristage.export.forest import ForestSet, read_forests
from tristage.export.forest.checkpoint import merge

MODELS = Path(__file__).parents[1] / "models" / "xgboost"
TREELITE = ("treelite==4.3.0", "numpy==1.26.4", "scipy==1.14.1")
# every checkpoint of a folder in one process
RUN = """
import pathlib, sys, numpy, treelite
assert treelite.__version__ == "4.3.0"
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.tl")):
    model = treelite.Model.deserialize(path)
    answers = treelite.gtil.predict(model, numpy.load(path.with_suffix(".npy")), nthread=1)
    numpy.save(path.with_suffix(".answers.npy"), answers.reshape(len(answers), -1))
"""


def write(folder: Path, name: str, forests: ForestSet, rows: np.ndarray) -> None:
    (folder / f"{name}.tl").write_bytes(bytes(merge(forests).model.serialize_bytes()))
    np.save(folder / f"{name}.npy", rows)


def test_forests_of_every_xgboost(tmp_path: Path) -> None:
    rows, every = np.load(MODELS / "rows.npy"), {}
    for folder in sorted(path for path in MODELS.iterdir() if path.is_dir()):
        said = json.loads((folder / "answers.json").read_text())
        for file in said:
            forests = read_forests(file, folder / file, (), grouped=False)
            every[f"{folder.name}-{file}"] = (forests, said[file])
            write(tmp_path, f"{folder.name}-{file}", forests, rows)
    assert {name.split("-")[0] for name in every} == {"1.7.6", "2.1.4", "3.0.5", "3.2.0"}
    subprocess.run([python_with(*TREELITE), "-c", RUN, tmp_path], check=True, timeout=600)
    for name, (forests, said) in every.items():
        (forest,) = forests.all()
        merged = merge(forests)
        answers = np.load(tmp_path / f"{name}.answers.npy")[:, : merged.columns]
        if merged.probabilities:  # what the version that trained it answered, to the digits that were kept
            np.testing.assert_allclose(answers, np.reshape(said, (len(rows), -1)), atol=1e-6, rtol=1e-6, err_msg=name)
        else:
            assert forest.margins is not None
            np.testing.assert_allclose(answers, forest.margins(rows), atol=2e-6, rtol=1e-6, err_msg=name)


def test_forests_of_other_libraries(tmp_path: Path) -> None:
    rows = rows_of(5, 300, 4)
    rows[:, 3] = np.random.default_rng(5).integers(0, 60, 300)
    labels = rows[:, 3] % 3
    data = lightgbm.Dataset(rows, labels == 1, categorical_feature=[3])
    models = {
        "lightgbm": lightgbm.train({"objective": "binary", "verbose": -1, "min_data_per_group": 1}, data, 9),
        "sklearn": RandomForestClassifier(9, random_state=0).fit(rows, labels),
    }
    for name, model in models.items():
        write(tmp_path, name, read_forests(name, model, (), grouped=False), rows)
    subprocess.run([python_with(*TREELITE), "-c", RUN, tmp_path], check=True, timeout=600)
    for name, model in models.items():
        (forest,) = read_forests(name, model, (), grouped=False).all()
        answers = np.load(tmp_path / f"{name}.answers.npy")[:, : forest.outputs]
        np.testing.assert_allclose(answers, forest.predict(rows), atol=1e-6)
