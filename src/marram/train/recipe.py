"""A recipe: one page of YAML: how a model is trained, on what, and when it is good enough to replace the old one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from marram.schema.errors import Invalid, Missing
from marram.schema.ids import Name
from marram.schema.model import Input, Strict
from marram.schema.page import Page
from marram.schema.units import Share
from marram.schema.words import did_you_mean, field_fault, file_fault


class Data(Strict):
    """What training starts from: scikit-learn's `digits`, or a folder with one sub-folder of pictures a label."""

    dataset: Literal["digits"] | None = None
    images: str | None = None
    # Only so many of the data set, from its beginning.
    first: int | None = Field(default=None, ge=1)
    # The slice these examples are evaluated as, beside each site's samples.
    name: Name = "base"

    @model_validator(mode="after")
    def _one(self) -> Data:
        if (self.dataset is None) == (self.images is None):
            raise ValueError("give either dataset: digits, or images: FOLDER with one sub-folder a label")
        return self


class Samples(Strict):
    """Labelled samples of an app's devices; `by` is the device label that tells the sites apart."""

    app: Name
    by: str = "site"


class Accept(Strict):
    """A candidate is refused where a slice's held-out accuracy falls by more than `tolerance`, or none gains."""

    tolerance: Share = 0.01


class Recipe(Strict):
    """How one model is made. Everything random is drawn from `seed`, so a recipe makes the same model twice."""

    recipe: Name
    labels: list[str] = Field(min_length=2)
    data: Data
    samples: Samples | None = None
    input: Input
    network: Literal["small-cnn"] = "small-cnn"
    width: int = Field(default=16, ge=4, le=256)
    epochs: int = Field(default=15, ge=1, le=10_000)
    batch: int = Field(default=64, ge=2)
    rate: float = Field(default=2e-3, gt=0)
    # Pictures are moved by up to so many pixels each way while training, so that a place is not learnt by heart.
    shift: int = Field(default=0, ge=0, le=64)
    seed: int = 0
    hold_out: Share = 0.25
    accept: Accept = Accept()
    licence: str
    source: str
    description: str = ""

    @model_validator(mode="after")
    def _pictures(self) -> Recipe:
        if self.input.kind != "image" or self.input.layout != "NCHW" or len(self.input.size) != 2:
            raise ValueError("small-cnn takes pictures: input needs size: [height, width] and layout: NCHW")
        if not 0 < self.hold_out < 1:
            raise ValueError("hold_out: some examples must be held out, and some trained on; write for example 25 %")
        return self


def read_recipe(path: Path) -> Recipe:
    """The recipe in the file `path`. Raises Missing; Invalid with every fault, one a line `file:line  field: fault`."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise Missing(f"no such file {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"cannot be read: {file_fault(error)}", where=str(path)) from error
    page = Page.read(text, str(path))
    if not isinstance(page.document, dict):
        raise Invalid("a recipe is a mapping with recipe, labels, data, input, licence and source", where=page.name)
    try:
        return Recipe.model_validate(page.document)
    except ValidationError as error:
        raise Invalid("\n".join(_fault(page, fault) for fault in error.errors())) from error


def _fault(page: Page, fault: Any) -> str:
    message = field_fault(fault)
    if fault["type"] == "extra_forbidden" and len(fault["loc"]) == 1:
        message += did_you_mean(str(fault["loc"][0]), Recipe.model_fields)
    return f"{page.where(fault['loc']) if fault['loc'] else page.name}: {message}"
