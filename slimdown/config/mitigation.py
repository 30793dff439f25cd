"""What a mitigation of forgetting is, and the table of those that there are."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, ClassVar

from slimdown.config.fields import FILE, MISSING, build_choice, read_choice, setting
from slimdown.utils.extensions import add_extensions

GROUP = "slimdown.mitigations"
_FOLDER = Path(__file__).parents[1] / "training" / "mitigations"
_NONE = "none"


@dataclass
class Mitigation:
    """What a run does so that it keeps what the base can do; this one, `keep=none`, does nothing.

    A mitigation is a subclass in a file of `training/mitigations/`, or in another package. Its
    fields are its settings, `keep.FIELD`; a file of `conf/keep/`, or their defaults, sets them. It
    overrides what it does otherwise. Reports and checks read it, too: what needs torch is imported
    inside functions.

    Attributes:
        description: What it does, a few words for console, page and card.
        preparation: What it does before the training that may take long; empty: nothing.
        is_advised: Whether it is advised to those who lost something without any.
    """

    name: str = setting(
        "how to forget less: the way in which training keeps what the base model can do"
    )

    description: ClassVar[str] = ""
    preparation: ClassVar[str] = ""
    is_advised: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        """Refuse the name that `description` had before."""
        super().__init_subclass__()
        if "about" in vars(cls):
            raise TypeError(f"{cls.__name__}.about must be called {cls.__name__}.description")

    @staticmethod
    def list_kinds() -> dict[str, type["Mitigation"]]:
        """Return the classes that the section `keep` may have, for help and messages."""
        return list_mitigations()

    @staticmethod
    def read_plain(values: Mapping[str, Any]) -> "Mitigation":
        """Restore recorded settings, also those of a mitigation that is not installed here."""
        return read_choice(Mitigation, list_mitigations(), values)

    @property
    def is_active(self) -> bool:
        """Whether anything is done."""
        return self.name not in (_NONE, MISSING)

    @property
    def compares_with_base(self) -> bool:
        """Whether its loss needs the base beside what is trained."""
        return False

    @property
    def added_share(self) -> float:
        """The share of all rows that it adds."""
        return 0.0

    def adapt_to(self, tokenizer: Any, rows: Any, config: Any) -> "Mitigation":
        """Return the mitigation that it is with this base and these rows; that is recorded.

        Args:
            tokenizer: The base's.
            rows: The `TrainingData`.
            config: The checked `RunConfig`.

        Raises:
            ModelError: It does not work with this base.
        """
        return self

    def find_conflicts(self, config: Any) -> Iterator[str]:
        """Find what does not go together with the other settings, a line each."""
        return iter(())

    def find_file_problems(self) -> Iterator[str]:
        """Find what is wrong with the files that its settings name, before the first run."""
        return iter(())

    def list_files(self) -> dict[str, Path]:
        """Return the files that its settings name, by dotted key: a run's key holds their content.

        They are the settings whose range is `FILE`.
        """
        names = [field.name for field in fields(self) if field.metadata.get("range") is FILE]
        paths = {name: getattr(self, name) for name in names}
        return {f"keep.{name}": Path(path) for name, path in paths.items() if path}

    def read_prompts(self) -> list[str]:
        """Read the texts of its files that are trained on: they may hold benchmarks' questions."""
        return []

    def describe(self) -> str:
        """Describe it in a line, for console, page and card; empty where nothing is done."""
        labels = {"weight": "KL penalty weight"}
        set_values = {key: value for key, value in vars(self).items() if value and key != "name"}
        values = [f"{labels.get(key, key)} {value}" for key, value in set_values.items()]
        named = f"{self.name}: {self.description}" if self.description else self.name
        return ", ".join([named, *values]) if self.is_active else ""

    def explain_plan(self, n_rows: int) -> Iterator[str]:
        """Say what a plan of a training on so many rows does not count, a sentence each."""
        return iter(())

    def choose_parts(self, parts: Sequence[Any]) -> tuple[list[Any], list[str]]:
        """Choose the rows of the datasets.

        Args:
            parts: The `DatasetPart` of each dataset.

        Returns:
            The parts to train on, and lines for the user. One with `is_added` is the last.
        """
        return list(parts), []

    def prepare_rows(self, base: Any, rows: Any, config: Any) -> Any:
        """Return the rows to train on, with what it adds to them or marks in them.

        Several processes call this together.

        Args:
            base: The `LoadedModel`, which stays as it is.
            rows: The `TokenizedRows`. Held-out rows stay as they are.
            config: The checked `RunConfig`.

        Raises:
            DataError: Nothing is left to train on, or nothing can be added.
        """
        return rows

    def choose_compared(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the rows of a batch that the base reads, too; empty: there are none.

        Args:
            inputs: The model's arguments, and `labels`; see `training/labels.py` for marks. They
                stay as they are: return a copy.
        """
        return {}

    def measure_loss(self, predicted: Any, base_predicted: Any) -> Any:
        """Compute what is added to the loss of a batch with compared rows, in nats.

        It is called where `choose_compared` returned rows. For a penalty on weights there is no
        place.

        Args:
            predicted: The model's `Predictions` in the batch, see `training/labels.py`.
            base_predicted: Those of the base in the compared rows, without a gradient.
        """
        raise NotImplementedError(f"keep={self.name} compares rows, but defines no loss")


@cache
def list_mitigations() -> dict[str, type[Mitigation]]:
    """Return every mitigation by name: `none`, those of `training/mitigations/`, and extensions.

    Raises:
        ConfigError: An extension is broken.
    """
    own: dict[str, type[Mitigation]] = {_NONE: Mitigation}
    for module in iter_modules([str(_FOLDER)]):
        if module.name.startswith("_"):
            continue  # code that several mitigations share
        class_name = module.name.title().replace("_", "")  # self_replay has the class SelfReplay
        imported = import_module(f"slimdown.training.mitigations.{module.name}")
        own[module.name] = getattr(imported, class_name)
    demand = "a subclass of slimdown.config.mitigation.Mitigation"
    return add_extensions(GROUP, own, _is_mitigation, demand)


def _is_mitigation(added: Any) -> bool:
    return isinstance(added, type) and issubclass(added, Mitigation)


def build_mitigation(values: Mapping[str, Any]) -> Mitigation:
    """Build the mitigation that composed settings choose.

    Args:
        values: The settings of the section `keep`.

    Raises:
        ConfigError: Lists what is wrong with them, one a line.
    """
    return build_choice("keep", list_mitigations(), values)


def advise_mitigation() -> str:
    """Return the setting that is advised to those who lost something; empty where there is none."""
    advised = (name for name, kind in list_mitigations().items() if kind.is_advised)
    return next((f"keep={name}" for name in advised), "")
