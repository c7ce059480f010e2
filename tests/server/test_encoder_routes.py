"""What an encoder serves over HTTP: labels, pairs and reranking; and what it answers when it is asked for text."""

import math

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from quire import AsyncEngine, EngineConfig

transformers = pytest.importorskip("transformers")

WORDS = ["[PAD]", "[X]", "[CLS]", "[SEP]", "[UNK]", *(f"w{number}" for number in range(40))]
SIZES = {"vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
         "num_attention_heads": 2, "max_position_embeddings": 32}  # fmt: skip


@pytest.fixture(scope="module")
def make_checkpoint(tmp_path_factory):
    def make(kind, **config):
        path = tmp_path_factory.mktemp("encoder")
        torch.manual_seed(1)
        model = getattr(transformers, kind)(transformers.BertConfig(**SIZES, **config))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.4)
        model.save_pretrained(path)
        core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
        core.pre_tokenizer = pre_tokenizers.Whitespace()
        core.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        core.save(str(path / "tokenizer.json"))
        return path, model.eval()

    return make


@pytest.fixture
async def serve(make_checkpoint, make_http):
    engines = []

    async def start(kind, **config):
        path, model = make_checkpoint(kind, **config)
        config = EngineConfig.from_options(model=str(path), served_model_name="tiny", threads=1)
        engines.append(await AsyncEngine.start(config, in_process=True))
        return make_http(engines[-1]), model

    yield start
    for engine in engines:
        await engine.close()


async def _post(http, path, status=200, **body):
    response = await http.post(path, json=body)
    assert response.status_code == status, response.text
    return response.json()


async def test_classify_names_the_label_and_gives_every_probability(serve):
    labels = {0: "calm", 1: "angry", 2: "glad"}
    http, model = await serve("BertForSequenceClassification", id2label=labels, label2id={})
    answer = await _post(http, "/classify", input=["w1 w2 w3", "w9"])
    with torch.inference_mode():
        expected = [model(input_ids=torch.tensor([ids])).logits[0].softmax(-1) for ids in ([2, 6, 7, 8, 3], [2, 14, 3])]
    for entry, probs in zip(answer["data"], expected, strict=True):
        assert entry["probs"] == pytest.approx(probs.tolist(), abs=1e-5)
        assert entry["label"] == labels[int(probs.argmax())] and entry["num_classes"] == 3
    assert answer["usage"] == {"prompt_tokens": 8, "total_tokens": 8} and answer["model"] == "tiny"
    raw = await _post(http, "/pooling", input="w9")
    weights = [math.exp(logit) for logit in raw["data"][0]["data"]]
    assert [weight / sum(weights) for weight in weights] == pytest.approx(expected[1].tolist(), abs=1e-5)
    for path, body in (("/rerank", {"query": "w1", "documents": ["w2"]}), ("/v1/embeddings", {"input": "w1"})):
        error = (await _post(http, path, 400, **body))["error"]
        assert error["code"] == "unsupported_task" and "label" in error["message"]
    error = (await _post(http, "/pooling", 400, input="w1", dimensions=2))["error"]
    assert error["param"] == "dimensions"


async def test_a_cross_encoder_reranks_by_what_it_makes_of_the_pairs(serve):
    http, model = await serve("BertForSequenceClassification", num_labels=1)
    documents = ["w3 w4", "w5", "w6 w7 w8", "w1 w2"]
    expected = []
    for document in documents:
        second = [WORDS.index(word) for word in document.split()]
        ids = [2, 6, 7, 3, *second, 3]
        types = [0] * 4 + [1] * (len(second) + 1)
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([types])).logits
        expected.append(float(logits.sigmoid()))
    answer = await _post(http, "/v1/rerank", query="w1 w2", documents=documents, top_n=3)
    order = sorted(range(4), key=lambda index: -expected[index])[:3]
    assert [result["index"] for result in answer["results"]] == order
    scores = [result["relevance_score"] for result in answer["results"]]
    assert scores == pytest.approx([expected[index] for index in order], abs=1e-5)
    scored = await _post(http, "/score", text_1="w1 w2", text_2=documents)
    assert [entry["score"] for entry in scored["data"]] == pytest.approx(expected, abs=1e-5)


async def test_pairs_that_are_too_long_are_refused_unless_they_may_be_cut(serve):
    http, _ = await serve("BertForSequenceClassification", num_labels=1)
    body = {"query": "w1", "documents": ["w2 " * 99]}
    error = (await _post(http, "/rerank", 400, **body))["error"]
    assert error["code"] == "context_length_exceeded" and "103 tokens" in error["message"]
    answer = await _post(http, "/rerank", truncate_prompt_tokens=-1, **body)
    assert answer["usage"]["prompt_tokens"] == 32


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "w1"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "w1"}]}),
    ],
)
async def test_an_encoder_that_is_asked_for_text_says_what_it_serves(serve, path, body):
    http, _ = await serve("BertModel")
    error = (await _post(http, path, 400, **body))["error"]
    assert error["code"] == "unsupported_task" and error["param"] == "model"
    assert "/v1/embeddings" in error["message"]
    assert len((await _post(http, "/v1/embeddings", input=["w1", "w2 w3"]))["data"]) == 2
