"""Whatever a user gets wrong is answered at once, in words, with a non-zero exit, and leaves nothing behind.

Each line of a table is an input and what the answer must hold. They run in one process, through `main`, which is where
a command begins; a few are started as a user would. What only a loaded model can tell is at the end, and in
test_model.py, test_train.py and test_chat.py.
"""

import gc
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from conftest import SMALL
from mlflow import MlflowClient
from test_model import damage

from slimdown import check, compare, run
from slimdown.config.schema import RunConfig
from slimdown.experiment import experiment
from slimdown.pocket import MODEL_DIR
from slimdown.tracking.provenance import About
from slimdown.utils.errors import SlimdownError

SETTINGS = [
    # groups
    ("model=llama3", "there is no such model; did you mean llama32"),
    ("model=null", "choose one model by its name; known: llama32"),
    ("model=[pocket,smollm2]", "model=[pocket,smollm2]: choose one model by its name"),
    ("lora=null", "lora=null: choose one lora by its name; known: all_linear, mlp, qkv"),
    ("lora={r:4}", "choose one lora by its name"),
    ("train=null", "train=null: choose one train by its name"),
    ("train=4", "train=4: choose one train by its name; known: default, pocket, quick"),
    ("quantization=null", "choose one quantization by its name"),
    ("quantization=nf5", "did you mean nf4?"),
    ("dataset=null", "choose one dataset by its name"),
    ("dataset=[null]", "choose one dataset by its name"),
    ("dataset=[1]", "choose one dataset by its name"),
    ("dataset=[[alpaca]]", "choose one dataset by its name"),
    ("dataset=[alpacca]", "did you mean alpaca?"),
    ("dataset=[]", "no dataset is chosen"),
    ("benchmark=[]", "no benchmark is chosen"),
    ("benchmark=hellaswg", "did you mean hellaswag?"),
    ("experiment=nope", "there is no such experiment; known: data, epochs"),
    ("experiment=[pocket_replay]", "choose one experiment by its name"),
    ("lora@x=qkv", "Could not override 'lora@x'"),
    ("+benchmark={mine:{task:gsm8k}}", "choose one benchmark by its name"),
    # the model
    ("model.id=''", "model.id is empty"),
    ("model.id=pocket:nope", "the embedded world has one model, pocket:model"),
    ("model.id=pocket:../../conf/config", "the embedded world has one model, pocket:model"),
    ("model.id=./nowhere", "there is no folder ./nowhere"),
    ("model.id=a/b/c", "there is no folder a/b/c"),
    ("'model.id=\"~nobody/x\"'", "there is no folder ~nobody/x"),
    (
        "model.id='a b'",
        "is neither a hub id such as HuggingFaceTB/SmolLM2-135M-Instruct nor a folder",
    ),
    ("model.revision=v2", "pocket:model is a folder and has no revisions"),
    ("model.dtype=half", "expected one of [auto, float32, bfloat16, float16]"),
    ("model.device=tpu", "expected one of [auto, cpu, cuda, mps]"),
    ("model.attn_implementation=[1]", "Cannot convert 'list' to string"),
    ("quantization.load_in_8bit=true", "load_in_4bit and load_in_8bit are both true"),
    ("quantization.dequantize_for_evaluation=maybe", "must be auto, true or false, got maybe"),
    ("quantization.bnb_4bit_quant_type=nf5", "expected one of [nf4, fp4]"),
    # numbers
    ("lora.r=0", "lora.r must be at least 1, got 0"),
    ("lora.r=-1", "lora.r must be at least 1, got -1"),
    ("lora.r=2.5", "could not be converted to Integer"),
    ("lora.r=abc", "could not be converted to Integer"),
    ("lora.r=true", "could not be converted to Integer"),
    ("lora.r=nan", "could not be converted to Integer"),
    ("lora.r=[1]", "could not be converted to Integer"),
    ("lora.r={a:1}", "could not be converted to Integer"),
    ("lora.r=null", "lora.r=None: field 'r' is not Optional"),
    ("lora.r=1e3", "could not be converted to Integer"),
    ("lora.r=513", "no matrix of pocket:model has more than 512 rows or columns"),
    ("lora.r=4000000", "no matrix of pocket:model has more than 512 rows or columns"),
    ("lora.r=99999999999999999999999", "must be a whole number of at most 4294967295"),
    ("lora.r=" + "9" * 5000, "is not setting=value: Exceeds the limit"),
    ("lora.lora_alpha=0", "lora.lora_alpha must be at least 1, got 0"),
    ("lora.lora_dropout=1", "must be from 0 up to, not including, 1, got 1.0"),
    ("lora.lora_dropout=nan", "lora.lora_dropout must be a finite number, got nan"),
    ("lora.target_modules=[]", "lora.target_modules is empty"),
    ("lora.target_modules=['']", "lora.target_modules is empty"),
    ("lora.target_modules=q_proj", "is not a ListConfig"),
    ("lora.target_modules=[null]", "NoneType is not a subclass of str"),
    ("train.learning_rate=0", "train.learning_rate must be above 0, got 0.0"),
    ("train.learning_rate=-1e-3", "train.learning_rate must be above 0"),
    ("train.learning_rate=nan", "train.learning_rate must be a finite number, got nan"),
    ("train.learning_rate=inf", "train.learning_rate must be a finite number, got inf"),
    ("train.learning_rate=1e400", "train.learning_rate must be a finite number, got inf"),
    ("train.num_train_epochs=inf", "train.num_train_epochs must be a finite number, got inf"),
    ("train.num_train_epochs=nan", "train.num_train_epochs must be a finite number, got nan"),
    ("train.num_train_epochs=0", "train.num_train_epochs must be above 0"),
    ("train.warmup_steps=nan", "train.warmup_steps must be a finite number, got nan"),
    ("train.warmup_steps=-1", "train.warmup_steps must not be negative"),
    ("train.weight_decay=-inf", "train.weight_decay must be a finite number, got -inf"),
    ("train.weight_decay=-1", "train.weight_decay must not be negative"),
    ("train.max_grad_norm=0", "train.max_grad_norm must be above 0"),
    ("train.max_steps=0", "at least 1, or -1 for whole epochs, got 0"),
    ("train.max_steps=-2", "at least 1, or -1 for whole epochs, got -2"),
    ("train.max_steps=99999999999999999999", "train.max_steps must be a whole number of at most"),
    ("train.max_length=7", "train.max_length must be at least 8 tokens, got 7"),
    ("train.max_length=null", "field 'max_length' is not Optional"),
    ("train.per_device_train_batch_size=0", "train.per_device_train_batch_size must be at least 1"),
    (
        "train.gradient_accumulation_steps=-1",
        "train.gradient_accumulation_steps must be at least 1",
    ),
    ("train.per_device_eval_batch_size=0", "train.per_device_eval_batch_size must be at least 1"),
    ("seed=-1", "seed must not be negative, got -1"),
    ("seed=4294967296", "seed must be a whole number of at most 4294967295"),
    ("seed=1.5", "could not be converted to Integer"),
    ("seed=null", "field 'seed' is not Optional"),
    ("seed=???", "seed must be set"),
    ("evaluation.batch_size=0", "evaluation.batch_size must be at least 1"),
    ("evaluation.token_budget=0", "evaluation.token_budget must be at least 1"),
    # names of others
    ("train.optim=adamm", "train.optim=adamm: there is none such; did you mean"),
    ("train.optim=''", "there is none such; known: adamw_torch"),
    ("train.optim=null", "field 'optim' is not Optional"),
    ("train.lr_scheduler_type=cosin", "there is none such; did you mean cosine?"),
    ("train.completion_only_loss=maybe", "is not a valid bool"),
    ("evaluation.apply_chat_template=null", "field 'apply_chat_template' is not Optional"),
    ("tracking.uri=mlruns", "tracking.uri must be a database or a server"),
    ("tracking.uri=''", "tracking.uri must be a database or a server"),
    ("tracking.uri=null", "field 'uri' is not Optional"),
    ("tracking.experiment=''", "tracking.experiment is empty"),
    ("tracking.experiment=a\udcffb", "is not setting=value: token recognition error"),
    (
        "\"tracking.experiment='a\udcffb'\"",
        "tracking.experiment holds a character that cannot be written",
    ),
    ("\"model.id='a\0b'\"", "model.id holds a character that cannot be written"),
    # benchmarks
    (
        "benchmark.pocket_cs.limit=0",
        "limit must be at least 1, got 0; leave it out for all questions",
    ),
    ("benchmark.pocket_cs.limit.x=4", "benchmark.pocket_cs.limit is one, and holds a plain value"),
    ("benchmark.pocket_cs.num_fewshot=-1", "num_fewshot must not be negative"),
    ("benchmark.pocket_cs.chance=1", "chance must be from 0 up to, not including, 1"),
    ("benchmark.pocket_cs.chance=nan", "chance must be a finite number"),
    ("benchmark.pocket_cs.margin=0", "margin must be above 0 and below 1"),
    ("benchmark.pocket_cs.margin=nan", "margin must be a finite number"),
    (
        "benchmark.pocket_cs.numeric_tolerance=inf",
        "numeric_tolerance must be a finite number, got inf",
    ),
    (
        "benchmark.pocket_cs.numeric_tolerance=nan",
        "numeric_tolerance must be a finite number, got nan",
    ),
    ("benchmark.pocket_cs.numeric_tolerance=0", "numeric_tolerance must be above 0"),
    ("benchmark.pocket_cs.role=nope", "expected one of [target, retained]"),
    ("benchmark.pocket_cs.paper_metric=nope", "expected one of [ability_augmentation"),
    ("benchmark.pocket_cs.task=nope", "the harness has no such task"),
    ("benchmark.pocket_cs.task=gsm8kk", "the harness has no such task; did you mean gsm8k"),
    ("benchmark.pocket_cs.task=''", "task is empty"),
    ("benchmark.pocket_cs.metric=''", "metric is empty"),
    ("benchmark.pocket_cs.nope=1", "benchmark.pocket_cs.nope is not a setting"),
    ("benchmark.pocket_cs=4", "int is not a subclass of BenchmarkConfig"),
    ("benchmark.nope.limit=1", "there is no benchmark nope; known: gsm8k"),
    ("benchmark.gsm8k.limit=1", "benchmark.gsm8k is not chosen; add it with benchmark=["),
    ("+benchmark.mine.task=gsm8k", "there is no benchmark mine"),
    # datasets
    ("dataset=[file]", "dataset.file.path must be set"),
    ("dataset.pocket_instructions.max_examples=0", "max_examples must be at least 1"),
    ("dataset.pocket_instructions.validation_examples=0", "validation_examples must be at least 1"),
    ("dataset.pocket_instructions.template=hello", "a text that holds {instruction}, got 'hello'"),
    ("dataset.pocket_instructions.input=x", "the template '{instruction}' has no {input}"),
    (
        "\"dataset.pocket_instructions.template='{instruction} {input}'\"",
        "has a place for {input}; name the column",
    ),
    ("dataset.pocket_instructions.split=test", "is a file and has no split"),
    ("dataset.pocket_instructions.name=main", "is a file and has no name"),
    ("dataset.pocket_instructions.revision=v2", "is a file and has no revision"),
    (
        "dataset.pocket_instructions.path=pocket:nope",
        "the embedded world has no such data; known: pocket:pocket_common",
    ),
    (
        "dataset.pocket_instructions.path=pocket:../../conf/config",
        "the embedded world has no such data",
    ),
    ("dataset.pocket_instructions.path=pocket:model", "the embedded world has no such data"),
    (
        "dataset.pocket_instructions.path=''",
        "is neither a hub id nor a .json, .jsonl, .csv or .parquet file",
    ),
    ("dataset.pocket_instructions.path='a b'", "is neither a hub id nor a .json"),
    ("dataset.pocket_instructions.path=/", "is neither a hub id nor a .json"),
    (
        "dataset.pocket_instructions.instruction=nope",
        "row 1: there is no column nope; there are prompt, completion",
    ),
    (
        "dataset.pocket_instructions.format=nope",
        "expected one of [auto, instruction, prompt_completion, messages, te",
    ),
    (
        "dataset.pocket_instructions.format=messages",
        "format=messages reads no template, instruction, input and output",
    ),
    (
        "dataset.pocket_instructions.output=answers",
        "there is no column answers; there are prompt, completion; name",
    ),
    ("dataset.pocket_instructions.skip_bad_rows=maybe", "is not a valid bool"),
    (
        "dataset.pocket_instructions.weight=-1",
        "dataset.pocket_instructions.weight must not be negative, got -1.0",
    ),
    (
        "dataset.pocket_instructions.weight=nan",
        "dataset.pocket_instructions.weight must be a finite number, got nan",
    ),
    (
        "dataset.pocket_instructions.weight=0",
        "dataset.pocket_instructions.weight=0: a mixture of nothing",
    ),
    (
        "dataset=[pocket_instructions,pocket_replay] dataset.pocket_replay.weight=1",
        "dataset.pocket_instructions.weight is not set, and others have one; give every dataset a weight, or none",
    ),
    # what somebody else tuned
    (
        "tuned=''",
        "tuned='': there is no such folder, and a hub id is OWNER/NAME or OWNER/NAME@REVISION",
    ),
    ("tuned=./nowhere", "tuned='./nowhere': there is no such folder"),
    ("tuned=/nowhere/a@b", "tuned='/nowhere/a': there is no such folder"),
    ("tuned=runs/mine/adapter", "tuned='runs/mine/adapter': there is no such folder"),
    ("tuned=pocket:nope", "tuned='pocket:nope': there is no such folder"),
    ("tuned=me/mine@", "a hub id is OWNER/NAME or OWNER/NAME@REVISION"),
    ("tuned=pocket:model@v2", "tuned=pocket:model is a folder and has no revisions; leave out @v2"),
    ("tuned=[a]", "tuned=['a']: "),
    ("+tuned.revision=main", "tuned is one, and holds a plain value"),
    ("-m tuned=pocket:model,./nowhere", "tuned='./nowhere': there is no such folder"),
    (
        "tuned=pocket:model lora.r=4",
        "tuned=pocket:model is measured as it is, and nothing is trained: leave out lora.r=4",
    ),
    (
        "tuned=me/mine dataset=[alpaca] seed=1",
        "nothing is trained: leave out dataset=[alpaca] seed=1",
    ),
    ("-m tuned=me/mine train=quick,default", "nothing is trained: leave out train=quick"),
    # what is no setting
    ("train.learning_rat=1", "did you mean train.learning_rate"),
    ("+train.learning_rat=1", "did you mean train.learning_rate"),
    ("learning_rate=1e-3", "did you mean train.learning_rate?"),
    ("++nope=1", "nope is not a setting; known: model"),
    ("~nope", "nope is not a setting"),
    ("~lora", "every setting is needed"),
    ("~lora.r", "every setting is needed"),
    ("lora.r", "is not setting=value"),
    ("=4", "there is no name before the ="),
    ("lora.r==4", "is not setting=value"),
    ("seed=" + "[" * 1000, "is not setting=value"),
    ("'seed=${nope}'", "Interpolation key 'nope' not found"),
    ("'seed=${lora}'", "could not be converted to Integer"),
    ("'seed=${oc.env:NOPE}'", "Environment variable 'NOPE' not found"),
    ("'seed=${seed}'", "Recursive interpolation detected"),
    ("lora.r=4 lora.r=8", "lora.r is given 2 times, lora.r=4 and lora.r=8; keep one"),
    ("lora.r=4 +lora.r=8", "lora.r is given 2 times"),
    ("model=pocket model=smollm2", "model is given 2 times"),
    # sweeps
    ("lora.r=4,8", "several values are a sweep; begin it with -m"),
    ("lora=glob(*)", "several values are a sweep; begin it with -m"),
    ("-m lora=glob(x*)", "no value is left to try"),
    (
        "-m seed=range(0,100000)",
        "this sweep is 100,000 runs (100,000 of seed), and one command starts at most 1,000",
    ),
    ("-m seed=range(0,1000000000000)", "this sweep is 1,000,000,000,000 runs"),
    ("-m seed=range(0,100) lora.r=range(1,100)", "9,900 runs (100 of seed x 99 of lora.r)"),
    ("-m lora.r=range(0,100)", "lora.r must be at least 1, got 0"),
    ("-m lora.r=range(1,999)", "no matrix of pocket:model has more than 512"),
    ("-m seed=range(0,10,0)", "a range needs a step other than 0"),
    ("-m seed=range(5,1)", "no value is left to try"),
    ("-m lora.lora_dropout=interval(0,0.1)", "give choice(...), range(...) or a list"),
    ("-m seed=choice()", "is not setting=value"),
    ("-m seed=0,1,x", "could not be converted to Integer"),
    ("-m model=pocket,nope", "model=nope: there is no such model"),
    ("lora.r=4 -m seed=1,-2", "seed must not be negative, got -2"),
    # Hydra's own
    (
        "hydra.launcher=nope",
        "chooses nothing; choose with hydra/launcher=..., known: basic, joblib, ray",
    ),
    (
        "hydra/launcher=nope",
        "there is no such hydra/launcher; known: basic, joblib, ray, submitit_local",
    ),
    (
        "hydra/launcher=joblib",
        "hydra/launcher=joblib starts the jobs of a sweep, be it of one; begin it with -m",
    ),
    ("-m hydra/launcher=joblib hydra.launcher.jobs=2", "jobs"),
    (
        "-m hydra/launcher=joblib hydra.launcher.n_jobs=0",
        "hydra.launcher.n_jobs must be -1, for all cores, or from 1",
    ),
    (
        "-m hydra/launcher=joblib hydra.launcher.n_jobs=99999 lora.r=0",
        "n_jobs must be -1, for all cores, or from 1",
    ),
    (
        "-m hydra/launcher=joblib hydra.launcher.n_jobs=99999 lora.r=0",
        "lora.r must be at least 1, got 0",
    ),
    (
        "-m hydra/launcher=joblib hydra.launcher.pre_dispatch=nope",
        "pre_dispatch must be all, n_jobs, a multiple",
    ),
    (
        "-m hydra/launcher=joblib hydra.launcher.backend=threading",
        "backend must be loky, the processes that",
    ),
    (
        "-m hydra/launcher=submitit_local hydra.launcher.timeout_min=-4",
        "timeout_min must be at least 1, got -4",
    ),
    (
        "-m hydra/launcher=ray hydra.launcher.ray.init.num_cpus=abc",
        "num_cpus must be at least 1, got abc",
    ),
    (
        "-m hydra/launcher=submitit_local 'hydra.launcher.nodes=${nope}'",
        "nodes: Interpolation key 'nope' not found",
    ),
    ("hydra/sweeper=nope", "there is no such hydra/sweeper; known: basic, slimdown"),
    ("+hydra.nope=1", "hydra.nope is not a setting of Hydra"),
    ("hydra=1", "Config group override must be a string or a list"),
    ("hydra.mode=nope", "expected one of [RUN, MULTIRUN]"),
    ("hydra.run.dir=null", "is not Optional"),
    ("'hydra.run.dir=${nope}'", "Interpolation key 'nope' not found"),
    ("hydra.job.env_copy=[NOPE]", "KeyError: 'NOPE'"),
    ("--config-dir /nowhere", "there is no folder /nowhere"),
    ("--experimental-rerun nope.pickle", "repeat the command"),
    ("--nope", "unrecognized arguments: --nope"),
    ("--cfg nope", "invalid choice: 'nope'"),
    ("-m lora.r=4,8 --cfg job", "--cfg shows one run; leave out -m and give one value each"),
    ("--resolve", "--resolve goes with --cfg or --help"),
    ("--run -m lora.r=4,8", "--run and --multirun do not go together; give one of them"),
    ("--info config --cfg job", "--cfg and --info do not go together; give one of them"),
]

TUNED = [
    ([], "there is neither an adapter (adapter_config.json) nor a model (config.json) in it"),
    (["checkpoint-9/adapter_config.json"], "(config.json) in it; checkpoint-9 in it may be meant"),
    (
        ["adapter_config.json"],
        "the weights of an adapter are expected in adapter_model.safetensors, and there are none",
    ),
    (
        ["adapter_config.json", "adapter_model.bin"],
        "only adapter_model.bin, and pickled weights can run code",
    ),
    (
        ["config.json", "pytorch_model.bin"],
        "the weights of a model are expected in *.safetensors, and there are only pyt",
    ),
    (
        ["config.json", "adapter_config.json", "model.safetensors"],
        "the weights of an adapter are expected in adapter_mo",
    ),
]

GOOD = '{"instruction": "a", "output": "b"}\n'
ROWS: list[tuple[str, str | bytes, str]] = [
    ("empty.jsonl", "", "has 0 row(s); at least 2 are needed"),
    ("one.jsonl", GOOD, "has 1 row(s); at least 2 are needed"),
    ("torn.jsonl", GOOD + '{"instruction": "a"', "row 2: cannot be read as JSON: Expecting ',' delimiter (column 20)"),
    ("text.jsonl", "hello\n", "row 1: cannot be read as JSON"),
    ("list.jsonl", GOOD + "[1, 2]\n", "row 2: it is not an object with named values"),
    ("names.jsonl", GOOD + '{"question": "a", "output": "b"}\n', "row 2: there is no column instruction; there are"),
    ("blank.jsonl", GOOD * 2 + '{"instruction": " ", "output": "b"}\n', "row 3: instruction is empty"),
    ("null.jsonl", GOOD + '{"instruction": "a", "output": null}\n', "row 2: output is empty"),
    ("nan.jsonl", GOOD + '{"instruction": "a", "output": NaN}\n', "row 2: output is empty"),
    ("gap.jsonl", GOOD + '\n\n{"instruction": "a", "output": ""}\n', "row 4: output is empty"),
    ("nested.jsonl", GOOD + '{"instruction": "a", "output": {"b": 1}}\n', "row 2: output holds an object"),
    ("listed.jsonl", GOOD + '{"instruction": ["a"], "output": "b"}\n', "row 2: instruction holds a list"),
    ("twice.jsonl", GOOD + '{"instruction": "a", "output": "b", "output": "c"}\n', "row 2: output is there twice"),
    ("half.jsonl", GOOD + '{"instruction": "a", "output": "\\ud800"}\n', "row 2: output holds half a character"),
    ("deep.jsonl", GOOD + "[" * 100_000 + "\n", "row 2: cannot be read as JSON: it is nested too deeply"),
    ("latin.jsonl", GOOD.encode() + b'{"instruction": "\xe9", "output": "b"}\n', "row 2: this is not UTF-8 text"),
    ("wide.jsonl", (GOOD * 2).encode("utf-16"), "row 1: this is not UTF-8 text"),
    ("null.jsonl", b"\0" * 50, "row 1: cannot be read as JSON"),
    ("long.jsonl", GOOD + json.dumps({"instruction": "a", "output": "b " * 5_000_000}), "row 2: output has 10,000,000"),
    ("object.json", '{"a": 1}', "cannot be read as rows: a list of objects is expected"),
    ("torn.json", '[{"instruction": "a",\n"output" "b"}]', "cannot be read as JSON: Expecting ':' delimiter (line 2"),
    ("mixed.json", '[{"instruction": "a", "output": "b"}, 7]', "row 2: it is not an object"),
    ("deep.json", "[" * 100_000, "cannot be read as JSON: it is nested too deeply"),
    ("short.csv", "instruction,output\na,b\nc\n", "row 2: it has 1 fields, and the header has 2"),
    ("more.csv", "instruction,output\na,b,c\n", "row 1: it has 3 fields, and the header has 2"),
    ("twice.csv", "instruction,output,output\na,b,c\nd,e,f\n", "row 1: output is there twice"),
    ("quoted.csv", 'instruction,output\na,b\nc,"d\n', "row 2: cannot be read as CSV"),
    ("names.csv", "question;answer\na;b\n", "row 1: there is no column instruction, output; there are question;answer"),
    ("blank.csv", "instruction,output\na,b\nc,\n", "row 2: output is empty"),
    ("fake.parquet", "not parquet", "cannot be read as Parquet"),
    ("fake.parquet", b"PAR1" + b"\0" * 100 + b"PAR1", "cannot be read as Parquet"),
]  # fmt: skip

TABLES = [
    ({"instruction": ["a", "b"], "output": [b"c", b"d"]}, "row 1: output holds bytes, not text"),
    ({"instruction": ["a", "b"], "output": [["c"], ["d"]]}, "row 1: output holds a list"),
    ({"instruction": ["a", "b"], "output": [{"c": 1}, {"c": 2}]}, "row 1: output holds an object"),
    ({"instruction": ["a", "b"], "output": ["c", None]}, "row 2: output is empty"),
    ({"instruction": ["a", "b"], "output": [1.5, float("nan")]}, "row 2: output is empty"),
    (
        {"question": ["a", "b"], "output": ["c", "d"]},
        "row 1: there is no column instruction; there are question, output",
    ),
]

FOLDERS = [
    ("dataset/mine.yaml", "a: [", "dataset=[mine]", "while parsing a flow node"),
    ("dataset/mine.yaml", "- 1\n", "dataset=[mine]", "Cannot merge DictConfig with ListConfig"),
    (
        "dataset/mine.yaml",
        "path: rows.jsonl\n",
        "dataset=[mine]",
        "begin with `# @package dataset.mine`?",
    ),
    (
        "experiment/mine.yaml",
        "# @package _global_\nlora: {r: 0}\n",
        "experiment=mine",
        "lora.r must be at least 1",
    ),
    (
        "experiment/mine.yaml",
        "# @package _global_\nlora: null\n",
        "experiment=mine",
        "field 'lora' is not Optional",
    ),
    (
        "experiment/mine.yaml",
        "# @package _global_\nlora: {nope: 1}\n",
        "experiment=mine",
        "Key 'nope' not in 'LoraConfig'",
    ),
    (
        "experiment/mine.yaml",
        b"\xff\xfe\0",
        "experiment=mine",
        "experiment=mine: UnicodeDecodeError",
    ),
    (
        "benchmark/mine.yaml",
        "# @package benchmark\n'b(1)': {task: pocket_cs, metric: acc, num_fewshot: 0, chance: 0.25}\n",
        "benchmark=[mine]",
        "benchmark.b(1): a name is made of letters, digits, _ and -",
    ),
    (
        "benchmark/mine.yaml",
        "# @package benchmark\n'[/y]': {task: pocket_cs, metric: acc, num_fewshot: 0, chance: 0.25}\n",
        "benchmark=[mine]",
        "benchmark.[/y]: a name is made of letters, digits, _ and -",
    ),
]

COMMANDS: list[tuple[Callable[[], None], str, str]] = [
    (check.main, "", "the following arguments are required: RUN"),
    (check.main, "run --nope", "unrecognized arguments: --nope"),
    (check.main, "run --max-loss x=nan", "give a share from 0 up to, not including, 1"),
    (check.main, "run --max-loss x=-1", "give a share from 0 up to, not including, 1"),
    (check.main, "run --max-loss x=1", "give a share from 0 up to, not including, 1"),
    (check.main, "run --max-loss x", "give a share from 0 up to, not including, 1"),
    (check.main, "run --max-loss a=0.1 a=0.9", "a has a budget already, 0.1"),
    (check.main, "run --max-loss a=0.1 --max-loss a=0.9", "a has a budget already, 0.1"),
    (check.main, "run", "there is no record"),
    (
        check.main,
        "run --tracking-uri sqlite:////nowhere/mlflow.db",
        "there is no record /nowhere/mlflow.db",
    ),
    (compare.main, "", "there is no record"),
    (compare.main, "--nope", "unrecognized arguments: --nope"),
    (
        compare.main,
        "--tracking-uri sqlite:////nowhere/mlflow.db",
        "there is no record /nowhere/mlflow.db",
    ),
]


Refused = Callable[[Callable[[], None], list[str]], str]


@pytest.fixture(scope="module", autouse=True)
def light_process() -> Iterator[None]:
    """What other tests left in this process is nothing that a command would have its collector look through."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Refused:
    """Runs a command that must be refused, in an empty folder, and returns its answer."""
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def begun() -> None:
        raise AssertionError("it was accepted")

    def answer(command: Callable[[], None], arguments: list[str]) -> str:
        monkeypatch.setattr(sys, "argv", ["slimdown", *arguments])
        monkeypatch.setattr(run, "job", begun)
        start = (
            time.process_time()
        )  # not the clock's: a busy machine answers later with the same work
        with pytest.raises(SystemExit) as stopped:
            command()
        seconds = time.process_time() - start
        code = stopped.value.code
        said = capsys.readouterr().err + (code if isinstance(code, str) else "")
        assert code not in (0, None)
        assert "Traceback" not in said
        assert seconds < 1
        assert not list(folder.iterdir())
        return said

    return answer


@pytest.mark.filterwarnings(
    r"ignore:\s*'hydra/launcher:UserWarning"
)  # as job.py does, with the reason
@pytest.mark.parametrize(
    ("arguments", "answer"), SETTINGS, ids=[a[:40].encode("ascii", "replace") for a, _ in SETTINGS]
)
def test_a_wrong_setting(arguments: str, answer: str, refused: Refused) -> None:
    assert answer in refused(run.main, shlex.split(arguments))


@pytest.mark.parametrize(
    ("name", "content", "answer"), ROWS, ids=[f"{name} {answer[:30]}" for name, _, answer in ROWS]
)
def test_a_wrong_file(
    name: str, content: str | bytes, answer: str, tmp_path: Path, refused: Refused
) -> None:
    file = tmp_path / name
    file.write_bytes(
        content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    )
    said = refused(run.main, ["dataset=[file]", f"dataset.file.path='{file}'"])
    assert f"dataset.file: {file} {answer}" in said
    assert len(said) < 1000


@pytest.mark.parametrize(("columns", "answer"), TABLES, ids=[answer for _, answer in TABLES])
def test_a_wrong_table(
    columns: dict[str, list[object]],
    answer: str,
    tmp_path: Path,
    refused: Refused,
) -> None:
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "rows.parquet")
    assert answer in refused(
        run.main, ["dataset=[file]", f"dataset.file.path='{tmp_path}/rows.parquet'"]
    )


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("nowhere/rows.jsonl", "there is no file"),
        ("folder.jsonl", "there is no file"),
        ("rows.txt", "is neither a hub id nor a .json, .jsonl, .csv or .parquet file"),
        ("n" * 300 + ".jsonl", "cannot be read: [Errno 36] File name too long"),
    ],
)
def test_a_wrong_path(path: str, answer: str, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "rows.txt").write_text("a")
    assert answer in refused(run.main, ["dataset=[file]", f"dataset.file.path='{tmp_path}/{path}'"])


@pytest.mark.parametrize(("files", "answer"), TUNED)
def test_a_folder_without_a_tuned_model(
    files: list[str], answer: str, tmp_path: Path, refused: Refused
) -> None:
    folder = tmp_path / "a@b"
    folder.mkdir()
    for file in files:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text("{}")
    said = refused(run.main, [f"tuned='{folder}'"])
    assert f"tuned={folder}: " in said
    assert answer in said


def test_a_file_in_place_of_the_folder_that_it_lies_in(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "adapter_model.safetensors").write_text("")
    assert "is a file; give the folder" in refused(
        run.main, [f"tuned={tmp_path}/adapter_model.safetensors"]
    )


def test_an_adapter_in_place_of_the_base(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "holds an adapter; name its base here, and itself as tuned=" in refused(
        run.main, [f"model.id={tmp_path}"]
    )


@pytest.mark.parametrize(("file", "content", "choice", "answer"), FOLDERS)
def test_a_wrong_group_file_of_ones_own(
    file: str,
    content: str | bytes,
    choice: str,
    answer: str,
    tmp_path: Path,
    refused: Refused,
) -> None:
    mine = tmp_path / "mine" / file
    mine.parent.mkdir(parents=True)
    mine.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert answer in refused(run.main, ["--config-dir", str(tmp_path / "mine"), choice])


@pytest.mark.parametrize(("command", "arguments", "answer"), COMMANDS)
def test_a_wrong_question_to_the_record(
    command: Callable[[], None], arguments: str, answer: str, refused: Refused
) -> None:
    assert answer in refused(command, shlex.split(arguments))


@pytest.mark.parametrize(
    ("command", "code", "answer"),
    [
        ("slimdown.run train.optim=adamm", 1, "there is none such"),
        ("slimdown.run -m seed=range(0,100000)", 1, "this sweep is 100,000 runs"),
        ("slimdown.run tuned=./nowhere", 1, "there is no such folder"),
        ("slimdown.run benchmark.pocket_cs.task=nope", 1, "the harness has no such task"),
        ("slimdown.run hydra.run.dir=/proc/nope", 1, "/proc/nope cannot be made"),
        ("slimdown.check run --max-loss x=nan", check.Outcome.unasked, "give a share"),
        ("slimdown.compare --tracking-uri sqlite:////nowhere/mlflow.db", 1, "there is no record"),
    ],
)
def test_a_command_answers_within_a_second_of_work(
    command: str, code: int, answer: str, tmp_path: Path
) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", *command.split()],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(Path(run.__file__).parents[1])},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == code
    assert answer in done.stderr
    assert "Traceback" not in done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("overrides", "answer"),
    [
        ("evaluation.apply_chat_template=true", "this model's tokenizer has no chat template"),
        ("model.attn_implementation=nope", "cannot be loaded: "),
        ("lora=all_linear lora.r=400", "the largest adapter that is smaller has lora.r="),
        ("train.optim=galore_adamw", "train.optim=galore_adamw cannot be used here"),
        ("cut short", "a .safetensors file is damaged or cut short"),
        ("a tensor is missing", "q_proj.weight is not in them"),
        ("a tensor has another shape", "q_proj.weight is (188, 192) and should be (192, 192)"),
    ],
)
def test_what_only_a_loaded_model_tells_is_told_before_anything_is_measured(
    overrides: str,
    answer: str,
    composed: Callable[..., RunConfig],
    store: MlflowClient,
    tmp_path: Path,
) -> None:
    model = tmp_path / "model"
    if "=" not in overrides:
        shutil.copytree(MODEL_DIR, model)
        damage(model, overrides)
        overrides = f"model.id={model}"
    uri = f"tracking.uri=sqlite:///{tmp_path}/mlruns/mlflow.db"
    with pytest.raises(SlimdownError) as caught:
        experiment(
            composed(*SMALL, uri, *overrides.split()), About("bad", "", [], tmp_path / "scratch")
        )
    assert answer in str(caught.value)
    assert "\n" not in str(caught.value)
    (recorded,) = store.search_runs([e.experiment_id for e in store.search_experiments()])
    assert recorded.info.status == "FAILED"
    assert not any(key.startswith("base/") for key in recorded.data.metrics)
