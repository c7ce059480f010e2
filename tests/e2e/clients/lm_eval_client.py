"""lm-eval's local-completions backend against the server at argv[1]; prints what it measured as JSON.

argv[2] is the folder of the model's tokenizer. The tasks and their data are in `lm_eval_tasks` beside this file.
"""

import json
import os
import sys
from pathlib import Path

import lm_eval
from lm_eval.tasks import TaskManager

TASKS = ["quire_choice", "quire_words", "quire_text"]
url, tokenizer = sys.argv[1:]
folder = Path(__file__).parent / "lm_eval_tasks"
os.chdir(folder)  # where the tasks' data files are named from
found = lm_eval.simple_evaluate(
    model="local-completions",
    model_args={
        "model": "quire-demo",
        "base_url": f"{url}/v1/completions",
        "tokenizer": tokenizer,
        "num_concurrent": 2,
        "max_length": 1024,
    },
    tasks=TASKS,
    task_manager=TaskManager(include_path=str(folder), include_defaults=False),
    batch_size=3,
    log_samples=True,
    bootstrap_iters=0,
)
samples = {
    task: [
        {"arguments": [list(each) for each in sample["arguments"]], "answers": sample["filtered_resps"]}
        for sample in found["samples"][task]
    ]
    for task in TASKS
}
print(json.dumps({"results": found["results"], "samples": samples}))
