"""Encoders compute what transformers does, through the whole engine: poolings, ragged batches, labels, pairs."""

import dataclasses
import json
import math
import random

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from quire import LLM
from quire.base.errors import ConfigError, InvalidRequestError, UnsupportedModelError, WeightError
from quire.base.pooling import POOLING_KINDS, PoolingParams
from quire.layers.context import BuildContext
from quire.models.encoder_families import ENCODERS
from quire.models.inspect import inspect_model
from quire.models.loader import build_model
from quire.models.weight_sizes import packed_weight_bytes
from quire.quant.packed import PackedSlot, PackedWeights

transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")

VOCAB = 120
SMALL = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
         "num_attention_heads": 4, "max_position_embeddings": 80}  # fmt: skip
DISTIL = {"vocab_size": VOCAB, "dim": 32, "hidden_dim": 48, "n_layers": 3, "n_heads": 4, "max_position_embeddings": 80}
KINDS = {
    "Bert": ("bert", SMALL),
    "Roberta": ("roberta", {**SMALL, "type_vocab_size": 1, "pad_token_id": 1}),
    "XLMRoberta": ("xlm-roberta", {**SMALL, "type_vocab_size": 1, "pad_token_id": 1}),
    "Camembert": ("camembert", {**SMALL, "type_vocab_size": 1, "pad_token_id": 1}),
    "DistilBert": ("distilbert", DISTIL),
}
LENGTHS = (1, 2, 7, 16, 17, 33, 64, 70)
WORDS = [f"w{number}" for number in range(VOCAB - 5)]


class Checkpoints:
    """Tiny random checkpoints with a tokenizer, made once each."""

    def __init__(self, root):
        self.root = root
        self.made = {}

    def __call__(self, stem, ending="Model", **config):
        key = json.dumps([stem, ending, config], sort_keys=True)
        if key not in self.made:
            path = self.root / f"{len(self.made)}"
            model_type, sizes = KINDS[stem]
            settings = transformers.AutoConfig.for_model(model_type, **{**sizes, **config})
            torch.manual_seed(len(self.made))
            theirs = getattr(transformers, stem + ending)(settings).eval()
            with torch.no_grad():
                for name, parameter in theirs.named_parameters():
                    noise = torch.randn(parameter.shape)
                    is_table = "embeddings" in name and parameter.ndim == 2
                    scale = 0.3 if parameter.ndim == 1 else 0.7 if is_table else 1.2 / math.sqrt(parameter.shape[-1])
                    parameter.copy_(noise * scale + (1 if name.endswith("LayerNorm.weight") else 0))
            theirs.save_pretrained(path)
            _tokenizer(with_types=stem in ("Bert", "DistilBert")).save(str(path / "tokenizer.json"))
            self.made[key] = path, theirs
        return self.made[key]


def _tokenizer(*, with_types):
    ids = {word: number for number, word in enumerate(["[PAD]", "[X]", "[CLS]", "[SEP]", "[UNK]", *WORDS])}
    core = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    pair = "[CLS] $A [SEP] $B:1 [SEP]:1" if with_types else "[CLS] $A [SEP] [SEP] $B [SEP]"
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair=pair, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return core


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return Checkpoints(tmp_path_factory.mktemp("encoders"))


@pytest.fixture
def copy_of(checkpoints, tmp_path):
    """A checkpoint whose files a test may change."""
    import shutil

    def copy(*args, **config):
        path, theirs = checkpoints(*args, **config)
        return shutil.copytree(path, tmp_path / "copy"), theirs

    return copy


def _prompts(lengths=LENGTHS):
    source = random.Random(3)
    return [[source.randrange(4, VOCAB) for _ in range(length)] for length in lengths]


def _pooled(hidden, kind):
    return {"cls": hidden[0], "last": hidden[-1], "mean": hidden.mean(0), "max": hidden.amax(0)}[kind]


def _reference(theirs, prompts, kind):
    """transformers' vector of each prompt, alone and so without padding."""
    with torch.inference_mode():
        return [_pooled(theirs(input_ids=torch.tensor([ids])).last_hidden_state[0], kind) for ids in prompts]


def _assert_same(ours, theirs):
    for vector, expected in zip(ours, theirs, strict=True):
        one, other = torch.tensor(vector).double(), expected.double()
        assert torch.cosine_similarity(one, other, dim=0) > 0.99999
        assert (one - other).abs().max() < 2e-4 * max(1, float(other.abs().max()))


@pytest.mark.parametrize("stem", KINDS)
def test_every_pooling_agrees_with_transformers_over_a_ragged_batch(checkpoints, stem):
    path, theirs = checkpoints(stem)
    prompts = _prompts()
    with LLM(str(path), debug=True) as llm:
        assert llm.info.pooling.kind == "mean" and llm.info.pooling.normalizes
        for kind in POOLING_KINDS:
            params = PoolingParams(pooling=kind, normalize=False)
            outputs = llm.embed(prompts, params, use_tqdm=False)
            ours = [output.outputs.embedding for output in outputs]
            _assert_same(ours, _reference(theirs, prompts, kind))
            alone = [llm.embed([prompt], params, use_tqdm=False)[0].outputs.embedding for prompt in prompts[::3]]
            assert alone == ours[::3], "a vector's bits depend on its batch"


@pytest.mark.parametrize("options", [{"async_scheduling": True, "max_num_batched_tokens": 80}, {"page_size": 8}])
def test_steps_that_hold_only_some_prompts_change_nothing(checkpoints, options):
    path, _ = checkpoints("Bert")
    prompts = _prompts() * 3
    with LLM(str(path)) as llm:
        expected = [output.outputs.embedding for output in llm.embed(prompts, use_tqdm=False)]
    with LLM(str(path), debug=True, max_num_seqs=4, **options) as llm:
        assert [output.outputs.embedding for output in llm.embed(prompts, use_tqdm=False)] == expected
        assert llm.stats.num_used_pages == 0


@pytest.mark.parametrize("stem", KINDS)
@pytest.mark.parametrize("num_labels", [1, 3])
def test_classifiers_give_transformers_probabilities(checkpoints, stem, num_labels):
    path, theirs = checkpoints(stem, "ForSequenceClassification", num_labels=num_labels)
    prompts = _prompts()
    with torch.inference_mode():
        logits = [theirs(input_ids=torch.tensor([ids])).logits[0] for ids in prompts]
    with LLM(str(path)) as llm:
        raw = [output.outputs.data for output in llm.encode(prompts, use_tqdm=False)]
        probs = [output.outputs.probs for output in llm.classify(prompts, use_tqdm=False)]
        assert llm.info.pooling.labels == tuple(f"LABEL_{number}" for number in range(num_labels))
    for ours, shown, expected in zip(raw, probs, logits, strict=True):
        assert ours == pytest.approx(expected.tolist(), abs=1e-4)
        wanted = expected.sigmoid() if num_labels == 1 else expected.softmax(-1)
        assert shown == pytest.approx(wanted.tolist(), abs=1e-5)
    assert len({tuple(values) for values in raw}) == len(prompts)


@pytest.mark.parametrize("stem", KINDS)
def test_a_cross_encoder_reads_pairs_as_transformers_does(checkpoints, stem):
    path, theirs = checkpoints(stem, "ForSequenceClassification", num_labels=1)
    query, documents = "w1 w2 w3", ["w4", "w5 w6 w7 w8", " ".join(WORDS[:100])]
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"))
    with LLM(str(path)) as llm:
        scores = llm.score(query, documents, use_tqdm=False)
        longest = llm.info.max_model_len
    assert len(scores[2].prompt_token_ids) == longest, "a pair that is too long is cut"
    for output, document in zip(scores, documents, strict=True):
        wanted = {"return_tensors": "pt", "return_token_type_ids": stem == "Bert"}
        pair = tokenizer(query, document, truncation=True, max_length=longest, **wanted)
        assert output.prompt_token_ids == pair["input_ids"][0].tolist()
        with torch.inference_mode():
            expected = theirs(**pair).logits[0, 0].sigmoid()
        assert output.outputs.score == pytest.approx(float(expected), abs=1e-5)


def test_token_types_reach_bert(checkpoints):
    path, _ = checkpoints("Bert", "ForSequenceClassification", num_labels=1)
    with LLM(str(path)) as llm:
        (pair,) = llm.score("w1 w2", "w3", use_tqdm=False)
        (one,) = llm.classify([pair.prompt_token_ids], use_tqdm=False)
    assert pair.outputs.score != pytest.approx(one.outputs.probs[0], abs=1e-4)


def test_an_encoder_says_what_it_serves_instead_of_generating(checkpoints):
    with LLM(str(checkpoints("Bert")[0])) as llm:
        with pytest.raises(InvalidRequestError, match="generates no text; it serves /v1/embeddings"):
            llm.generate("w1", use_tqdm=False)
        with pytest.raises(InvalidRequestError, match="81 tokens"):
            llm.embed([[5] * 81], use_tqdm=False)
        assert len(llm.embed([[5] * 80], use_tqdm=False)) == 1


def test_the_heads_of_pretraining_are_passed_over(checkpoints):
    for stem in KINDS:
        path, theirs = checkpoints(stem, "ForMaskedLM")
        with LLM(str(path)) as llm:
            outputs = llm.embed(_prompts((5, 9)), PoolingParams(normalize=False), use_tqdm=False)
        body = getattr(theirs, theirs.base_model_prefix)
        _assert_same([output.outputs.embedding for output in outputs], _reference(body, _prompts((5, 9)), "mean"))


def test_norms_under_their_oldest_names_are_loaded(copy_of):
    path, theirs = copy_of("Bert")
    tensors = safetensors_torch.load_file(path / "model.safetensors")
    older = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed = {}
    for name, tensor in tensors.items():
        for now, before in older.items():
            name = name.replace(now, before)
        renamed[f"bert.{name}"] = tensor
    assert sum("gamma" in name for name in renamed) == 7
    safetensors_torch.save_file(renamed, path / "model.safetensors")
    with LLM(str(path)) as llm:
        outputs = llm.embed(_prompts((5, 9)), PoolingParams(normalize=False), use_tqdm=False)
    _assert_same([output.outputs.embedding for output in outputs], _reference(theirs, _prompts((5, 9)), "mean"))


@pytest.mark.parametrize("is_missing", [True, False])
def test_a_tensor_too_few_or_too_many_is_refused(copy_of, is_missing):
    path, _ = copy_of("Bert")
    tensors = safetensors_torch.load_file(path / "model.safetensors")
    name = "encoder.layer.1.attention.self.key.bias"
    if is_missing:
        del tensors[name]
    else:
        name = "encoder.layer.1.attention.self.distance_embedding.weight"
        tensors[name] = torch.zeros(3, 3)
    safetensors_torch.save_file(tensors, path / "model.safetensors")
    with pytest.raises(WeightError, match=name):
        LLM(str(path))


def _write(path, name, value):
    (path / name).parent.mkdir(exist_ok=True)
    (path / name).write_text(json.dumps(value))


def _sentence_files(path, *kinds, pooling="pooling_mode_cls_token", **lengths):
    modules = [{"idx": i, "path": "" if i == 0 else f"{i}_{kind}", "type": f"sentence_transformers.models.{kind}"}
               for i, kind in enumerate(kinds)]  # fmt: skip
    _write(path, "modules.json", modules)
    modes = {f"pooling_mode_{kind}": False for kind in ("cls_token", "mean_tokens", "max_tokens", "lasttoken")}
    _write(path, "1_Pooling/config.json", {"word_embedding_dimension": 32, **modes, pooling: True})
    _write(path, "sentence_bert_config.json", {"max_seq_length": 40, "do_lower_case": False, **lengths})


@pytest.mark.parametrize("kind", POOLING_KINDS)
@pytest.mark.parametrize("normalizes", [True, False])
def test_sentence_transformers_files_say_how_to_pool(copy_of, kind, normalizes):
    path, theirs = copy_of("Bert")
    modes = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens", "last": "lasttoken"}
    kinds = ("Transformer", "Pooling", *(("Normalize",) if normalizes else ()))
    _sentence_files(path, *kinds, pooling=f"pooling_mode_{modes[kind]}")
    with LLM(str(path)) as llm:
        assert llm.info.max_model_len == 40
        ours = [output.outputs.embedding for output in llm.embed(_prompts((3, 40)), use_tqdm=False)]
    expected = _reference(theirs, _prompts((3, 40)), kind)
    _assert_same(ours, [vector / vector.norm() for vector in expected] if normalizes else expected)


@pytest.mark.parametrize(
    ("kinds", "changes", "named"),
    [
        (("Transformer", "Pooling", "Dense"), {}, "Dense"),
        (("Transformer",), {}, "Transformer"),
        (("Transformer", "Pooling"), {"pooling": "pooling_mode_weightedmean_tokens"}, "weightedmean"),
        (("Transformer", "Pooling"), {"do_lower_case": True}, "do_lower_case"),
        (("Transformer", "Pooling"), {"max_seq_length": 0}, "max_seq_length"),
    ],
)
def test_what_the_files_ask_for_and_is_not_computed_is_refused_by_name(copy_of, kinds, changes, named):
    path, _ = copy_of("Bert")
    _sentence_files(path, *kinds, **changes)
    with pytest.raises(UnsupportedModelError, match=named):
        inspect_model(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("position_embedding_type", "relative_key"),
        ("is_decoder", True),
        ("hidden_act", "mish"),
        ("hidden_size", 30),
        ("id2label", {"1": "yes"}),
        ("sbert_ce_default_activation_function", "torch.nn.modules.activation.Tanh"),
    ],
)
def test_a_configuration_that_is_not_computed_is_refused_by_name(copy_of, key, value):
    path, _ = copy_of("Bert", "ForSequenceClassification", num_labels=1)
    config = json.loads((path / "config.json").read_text())
    _write(path, "config.json", config | {key: value})
    with pytest.raises(UnsupportedModelError, match=key):
        inspect_model(path)


@pytest.mark.parametrize(
    ("changes", "activation"),
    [
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, "identity"),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.activation.Sigmoid"}, "sigmoid"),
        ({"problem_type": "regression"}, "identity"),
        ({"id2label": {"0": "no", "1": "yes"}}, "softmax"),
        ({"id2label": {"0": "no", "1": "yes"}, "problem_type": "multi_label_classification"}, "sigmoid"),
    ],
)
def test_a_configuration_names_what_its_logits_become(checkpoints, changes, activation):
    path, _ = checkpoints("Bert", "ForSequenceClassification", num_labels=1)
    config = json.loads((path / "config.json").read_text())
    assert ENCODERS["BertForSequenceClassification"].read(config | changes).label_activation == activation


def test_a_step_too_small_for_a_prompt_is_refused_at_start(checkpoints):
    with pytest.raises(ConfigError, match="max_num_batched_tokens"):
        LLM(str(checkpoints("Bert")[0]), max_num_batched_tokens=64)


@pytest.mark.parametrize("ending", ["Model", "ForSequenceClassification", "ForMaskedLM"])
@pytest.mark.parametrize("stem", KINDS)
def test_the_bytes_of_packed_weights_are_known_beforehand(checkpoints, stem, ending):
    info = inspect_model(checkpoints(stem, ending)[0])
    from quire.attention import select_backend

    context = BuildContext(
        dtype=torch.float32, device=torch.device("cpu"), attention=select_backend("reference"), max_model_len=32,
        scheme=PackedWeights("int8"),
    )  # fmt: skip
    slots = build_model(info, context).weight_slots().values()
    packed = {id(slot.matrix): slot.matrix.storage for slot in slots if isinstance(slot, PackedSlot)}
    plain = sum(math.prod(slot.shape) * 4 for slot in slots if not isinstance(slot, PackedSlot))
    actual = sum(storage.nbytes for storage in packed.values()) + plain
    assert packed_weight_bytes(info.shapes, "int8") == actual


def test_every_listed_encoder_is_compared_here():
    endings = ("Model", "ForSequenceClassification", "ForMaskedLM")
    compared = {stem + ending for stem in KINDS for ending in endings}
    assert set(ENCODERS) - compared == {"BertForPreTraining"}  # BertForMaskedLM and one head more, also passed over


def test_an_engine_info_holds_the_labels(checkpoints):
    path, _ = checkpoints("Bert", "ForSequenceClassification", num_labels=3)
    pooling = dataclasses.asdict(inspect_model(path).pooling)
    assert pooling["task"] == "classify" and pooling["size"] == 3 and not pooling["generates"]
