"""Command line: `python -m tools.tiny_model make` makes everything again.

Knows: the order of the steps and where files go. Does not know: how a step does its work.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tokenizers import Tokenizer
from tools.tiny_model.corpus.mixture import BALANCED
from tools.tiny_model.evaluate import (
    EXACT_TASKS,
    OTHER_TASKS,
    PROMPTS_PER_TASK,
    Score,
    evaluate,
    missed_targets,
    questions,
    table,
)
from tools.tiny_model.export import export
from tools.tiny_model.generate import Chat, TorchChat
from tools.tiny_model.heldout import Split
from tools.tiny_model.proof import prove, trace_training
from tools.tiny_model.recipe import DEMO_RECIPE, DRAFT_RECIPE, Recipe
from tools.tiny_model.texts import held_out_lines
from tools.tiny_model.tokenizer import Encoder, train_tokenizer
from tools.tiny_model.train import Trainer

_README = Path(__file__).parent / "README.md"
_BEGIN, _END = "<!-- table -->", "<!-- end of table -->"
_RECIPES: tuple[Recipe, ...] = (DEMO_RECIPE, DRAFT_RECIPE)
_TOKENIZER_SEED = 1
_TEXTS_PER_TASK = 20


def _tokenizer(work: Path) -> Tokenizer:
    """Returns the tokenizer of the work folder, trained first if need be."""
    path = work / "tokenizer.json"
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        train_tokenizer(_TOKENIZER_SEED, BALANCED).save(str(path))
    return Tokenizer.from_file(str(path))


def _train(work: Path, recipe: Recipe) -> Trainer:
    trainer = Trainer(recipe, _tokenizer(work), work)
    trainer.run()
    print(
        f"{recipe.name}: {trainer.model.parameter_count()} parameters, {recipe.steps} steps, "
        f"{trainer.wall_seconds / 60:.1f} min of wall time, {trainer.cpu_seconds / 60:.1f} min of CPU time"
    )
    return trainer


def _export(work: Path, out: Path) -> None:
    tokenizer = _tokenizer(work)
    for recipe in _RECIPES:
        trainer = Trainer(recipe, tokenizer, work)
        if trainer.step < recipe.steps:
            raise SystemExit(
                f"{recipe.name} has been trained for {trainer.step} of {recipe.steps} steps; run train first"
            )
        export(trainer.model, tokenizer, out / recipe.name)


def _chat(args: argparse.Namespace) -> Chat:
    if args.engine == "quire":
        # The engine is needed for this step alone, so the others run without it.
        from tools.tiny_model.quire_chat import QuireChat

        return QuireChat(args.out / DEMO_RECIPE.name)
    tokenizer = _tokenizer(args.work)
    return TorchChat(Trainer(DEMO_RECIPE, tokenizer, args.work).model, Encoder(tokenizer))


def _prove(work: Path) -> None:
    trace = trace_training(DEMO_RECIPE, Encoder(_tokenizer(work)))
    asked = [q for task in EXACT_TASKS + OTHER_TASKS for q in questions(task, "test", PROMPTS_PER_TASK)]
    print(prove(trace, asked))


def _write_table(scores: list[Score]) -> None:
    text = _README.read_text(encoding="utf-8")
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    _README.write_text(f"{before}{_BEGIN}\n{table(scores)}\n{_END}{after}", encoding="utf-8")


def _evaluate(args: argparse.Namespace, split: Split, count: int) -> int:
    """Prints the table and keeps wrong replies in the work folder; the exit status tells of targets."""
    scores, wrong = evaluate(_chat(args), split, count)
    print(table(scores))
    args.work.mkdir(parents=True, exist_ok=True)
    with (args.work / f"wrong-{split}.jsonl").open("w", encoding="utf-8") as file:
        for question, reply in wrong:
            line = {
                "task": question.task,
                "messages": question.prompt.messages,
                "reply": reply.text,
                "ended": reply.ended,
                "wanted": question.answer.value,
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    if split == "test":
        _write_table(scores)
    missed = missed_targets(scores)
    for line_of_text in missed:
        print(line_of_text, file=sys.stderr)
    return 1 if missed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.tiny_model", description=__doc__)
    steps = ("make", "tokenizer", "train", "draft", "export", "prove", "validate", "evaluate", "texts")
    parser.add_argument("step", choices=steps)
    parser.add_argument("--out", type=Path, default=Path("src/quire/assets"), help="folder of the model folders")
    parser.add_argument("--work", type=Path, default=Path("build/tiny_model"), help="folder of the checkpoints")
    parser.add_argument("--engine", choices=("quire", "torch"), default="quire", help="what answers the prompts")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs one step, or all of them, and returns the exit status."""
    args = _parser().parse_args(argv)
    everything = args.step == "make"
    if everything or args.step == "tokenizer":
        _tokenizer(args.work)
    if everything or args.step == "train":
        _train(args.work, DEMO_RECIPE)
    if everything or args.step == "draft":
        _train(args.work, DRAFT_RECIPE)
    if everything or args.step == "export":
        _export(args.work, args.out)
    if everything or args.step == "prove":
        _prove(args.work)
    if args.step == "texts":
        print(*held_out_lines("valid", _TEXTS_PER_TASK), sep="\n")
        return 0
    if args.step == "validate":
        return _evaluate(args, "valid", 20)
    if everything or args.step == "evaluate":
        return _evaluate(args, "test", PROMPTS_PER_TASK)
    return 0


if __name__ == "__main__":
    sys.exit(main())
