"""The native encoders: which class runs an architecture, and which reader makes its configuration. Torch-free."""

from __future__ import annotations

from functools import partial

from quire.models import readers_encoder as readers
from quire.models.families import FamilyEntry, Reader

_CLASSIFIER = "ForSequenceClassification"
_EMBEDDERS = ("Model", "ForMaskedLM")
"""What an architecture's name may end with where its hidden states are what is wanted."""


def _entries(family: str, stem: str, *, read: Reader, module: str, class_name: str) -> dict[str, FamilyEntry]:
    """The architectures of one family; those that classify have a head."""
    place = (f"quire.models.{module}", class_name)
    entries = {stem + ending: FamilyEntry(family, *place, read) for ending in _EMBEDDERS}
    return entries | {stem + _CLASSIFIER: FamilyEntry(family, *place, partial(read, classifies=True))}


def _roberta(family: str, stem: str) -> dict[str, FamilyEntry]:
    return _entries(family, stem, read=readers.read_roberta, module="bert", class_name="RobertaModel")


ENCODERS: dict[str, FamilyEntry] = {
    **_entries("BERT", "Bert", read=readers.read_bert, module="bert", class_name="BertModel"),
    "BertForPreTraining": FamilyEntry("BERT", "quire.models.bert", "BertModel", readers.read_bert),
    **_roberta("RoBERTa", "Roberta"),
    **_roberta("XLM-R", "XLMRoberta"),
    **_roberta("CamemBERT", "Camembert"),
    **_entries(
        "DistilBERT", "DistilBert", read=readers.read_distilbert, module="distilbert", class_name="DistilBertModel"
    ),
}
"""By architecture name."""
