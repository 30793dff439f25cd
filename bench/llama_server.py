"""Serve a GGUF file with llama.cpp's own server, which the package `xllamacpp` holds.

    python -m bench.llama_server FILE PORT [--context 2048] [--threads 1]

One slot answers, so that no answer depends on what else is asked meanwhile.
"""

import argparse
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from socket import socket


@dataclass(frozen=True)
class LlamaServer:
    """A server that runs, and its process."""

    address: str
    process: "subprocess.Popen[bytes]"


@contextmanager
def serve_file(file: Path, port: int = 0, context: int = 2048) -> Iterator[LlamaServer]:
    """Serve a file until the block ends.

    Args:
        file: The GGUF file.
        port: On loopback; 0: a free one.
        context: How many tokens a prompt and its answer may have.

    Yields:
        The server, which has loaded the model.
    """
    if not port:
        with closing(socket()) as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    command = [sys.executable, "-m", "bench.llama_server", str(file), str(port)]
    log = file.with_suffix(".log")
    with log.open("wb") as stream:
        root = Path(__file__).parents[1]
        command += ["--context", str(context)]
        process = subprocess.Popen(command, cwd=root, stdout=stream, stderr=stream)
    try:
        for _ in range(600):
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health"):
                break
            if process.poll() is not None:
                sys.exit(f"llama.cpp's server does not start:\n{log.read_text()}")
            time.sleep(0.2)
        yield LlamaServer(f"http://127.0.0.1:{port}/v1", process)
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """Serve the file that the command line names, until the process is killed."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("file", help="a GGUF file")
    parser.add_argument("port", type=int, help="on loopback")
    parser.add_argument("--context", type=int, default=2048, help="tokens of prompt and answer")
    parser.add_argument("--threads", type=int, default=1, help="of the processor")
    options = parser.parse_args()
    from xllamacpp import CommonParams, Server  # no dependency of slimdown

    params = CommonParams()
    params.model.path, params.port = options.file, options.port
    params.n_ctx, params.n_parallel, params.use_jinja = options.context, 1, True
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    server = Server(params)
    print(server)
    signal.pause()


if __name__ == "__main__":
    main()
