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
    """Find what is wrong with rows, tasks, repositories and options, before the first run.

    Args:
        configs: The checked settings of all runs of a command.

    Returns:
        One line for each problem. A problem that several runs have may be there several times.
    """
    from slimdown.data.row_checks import check_row_files

    problems: list[str] = []
    # The runs of a sweep share most settings. So each dictionary below has the settings that a
    # check reads as its key: of runs that are equal in these, one is checked.
    for datasets in {repr(config.dataset): config.dataset for config in configs}.values():
        problems += check_row_files(datasets)
    for keep in {repr(config.keep): config.keep for config in configs}.values():
        problems += keep.find_file_problems()
    by_tasks = {(repr(c.benchmark), c.evaluation.include_path): c for c in configs}
    for config in by_tasks.values():
        problems += check_task_names(config.benchmark, config.evaluation.include_path)
    for backend in dict.fromkeys(config.evaluation.backend for config in configs):
        if BACKENDS[backend].needs_gpu and not count_gpus():
            needs = f"evaluation.backend={backend} needs a GPU of NVIDIA's"
            problems.append(f"{needs}; set evaluation.backend={Backend.hf}")
    model_problems = list(_find_model_problems(configs))
    problems += model_problems
    if not model_problems:  # otherwise the user will name another model, so the hub is not asked
        problems += check_repositories(source for c in configs for source in _list_sources(c))
    with_options = [config for config in configs if needs_libraries(config)]
    if with_options and not problems:  # the check is slow: it imports torch
        from slimdown.training.options import check_options

        by_options = {repr((c.method.name, c.lora, c.train)): c for c in with_options}
        for config in by_options.values():
            problems += check_options(config)
    return iter(problems)


def _find_model_problems(configs: Sequence[RunConfig]) -> Iterator[str]:
    """Find adapters that were made on another base than the run's, and servers that are silent."""
    for config in configs:
        yield from find_wrong_base(config)
    by_server = {(c.address, repr(c.served)): c for c in configs if c.address}
    for config in by_server.values():
        try:
            find_server(config)  # raises if it does not answer
        except ModelError as error:
            yield str(error)


def _list_sources(config: RunConfig) -> Iterator[tuple[str, str, str, str]]:
    """Yield the repositories of a run on the hub, as `check_repositories` takes them.

    Yields:
        The setting that names the repository, its id, its revision, and "model" or "dataset".
    """
    for model in filter(None, (config.model, config.tuned_model)):
        if not model.folder:
            yield model.named, model.id, model.revision, "model"
    for name, dataset in config.dataset.items():
        if not dataset.file:
            setting = f"dataset.{name}.path={dataset.path}"
            yield setting, dataset.path, dataset.revision, "dataset"
