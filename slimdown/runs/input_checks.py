"""What is wrong with the rows, tasks, models and options of runs, found before the first begins."""

from collections.abc import Iterator, Sequence

from slimdown.config.benchmarks import check_task_names
from slimdown.config.engines import BACKENDS, Backend
from slimdown.config.refused_options import needs_libraries
from slimdown.config.schema import RunConfig
from slimdown.models.server import find_server
from slimdown.models.tuned_base import find_wrong_base
from slimdown.utils.devices import count_gpus
from slimdown.utils.errors import ModelError
from slimdown.utils.hub import check_repositories


def find_problems(configs: Sequence[RunConfig]) -> Iterator[str]:
    """Find what is wrong with rows, tasks, repositories and options, before the first run."""
    from slimdown.data.row_checks import check_row_files

    problems: list[str] = []
    # The jobs of a sweep share most settings: equal ones are checked once.
    for datasets in {repr(config.dataset): config.dataset for config in configs}.values():
        problems += check_row_files(datasets)
    for keep in {repr(config.keep): config.keep for config in configs}.values():
        problems += keep.find_file_problems()
    for config in {repr(c.benchmark): c for c in configs}.values():
        problems += check_task_names(config.benchmark, config.evaluation.include_path)
    backend = configs[0].evaluation.backend
    if BACKENDS[backend].needs_gpu and not count_gpus():
        needs = f"evaluation.backend={backend} needs a GPU of NVIDIA's"
        problems.append(f"{needs}; set evaluation.backend={Backend.hf}")
    model_problems = [problem for config in configs for problem in find_wrong_base(config)]
    for config in {(c.address, repr(c.served)): c for c in configs if c.address}.values():
        try:
            find_server(config)  # raises if it does not answer
        except ModelError as error:
            model_problems.append(str(error))
    sources = (source for config in configs for source in _list_sources(config))
    problems += model_problems or check_repositories(sources)
    with_options = {repr((c.lora, c.train)): c for c in configs if needs_libraries(c)}
    if with_options and not problems:  # the check is slow: it imports torch
        from slimdown.training.options import check_options

        for config in with_options.values():
            problems += check_options(config)
    return iter(problems)


def _list_sources(config: RunConfig) -> Iterator[tuple[str, str, str, str]]:
    """Yield what `check_repositories` asks the hub for."""
    for model in filter(None, (config.model, config.tuned_model)):
        if not model.folder:
            yield model.named, model.id, model.revision, "model"
    for name, dataset in config.dataset.items():
        if not dataset.file:
            setting = f"dataset.{name}.path={dataset.path}"
            yield setting, dataset.path, dataset.revision, "dataset"
