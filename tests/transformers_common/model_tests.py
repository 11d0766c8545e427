"""The families that the model tests of transformers run on, one row each, and the test classes made from the rows.

Run by `run.py`, which makes `transformers_tests` importable first.
"""

import unittest
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers_tests import test_modeling_common as common
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_training_mixin import TrainingTesterMixin

import modeling_prism


# Wants a mixin among the bases that the source distribution lacks; generation has tests of its own in tests/.
LEFT_OUT = ("test_generation_tester_mixin_inheritance",)


@dataclass
class Family:
    """
    Args:
        name (`str`): name in the report.
        prefix (`str`): what the names of its classes begin with.
        sizes (`dict`, *optional*): what its tiny configuration sets beside `TINY`.
        left_out (`tuple[str]`, *optional*): tests that ask for what it cannot have.
    """

    name: str
    prefix: str
    sizes: dict[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    @property
    def config_class(self) -> type[PreTrainedConfig]:
        return getattr(modeling_prism, f"{self.prefix}Config")

    def model_class(self, head: str) -> type[PreTrainedModel]:
        return getattr(modeling_prism, self.prefix + head)


# Odd where the architecture allows it, so that a transposed dimension fails.
TINY = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}

FAMILIES = [
    Family(name="Prism", prefix="Prism"),
    Family(name="Momentum", prefix="Momentum"),
    # Its head shows its rows on the sphere: the new ones are the mean of the others, but before that projection.
    Family(name="Spherical", prefix="Spherical", left_out=("test_resize_embeddings_untied",)),
    Family(
        name="SphericalUniform",
        prefix="Spherical",
        sizes={"attention_routing": "uniform"},
        # Gradients of queries, keys and attention weights, which take no part in a running mean.
        left_out=(
            "test_resize_embeddings_untied",
            "test_retain_grad_hidden_states_attentions",
            "test_training_gradient_checkpointing",
            "test_training_gradient_checkpointing_use_reentrant_false",
            "test_training_gradient_checkpointing_use_reentrant_true",
        ),
    ),
]

# Which heads take which labels is decided by class name, in mappings that list the models of transformers only.
HEADS = {
    "MODEL_MAPPING_NAMES": "Model",
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES": "ForCausalLM",
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES": "ForSequenceClassification",
    "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES": "ForTokenClassification",
    "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES": "ForQuestionAnswering",
}
for mapping_name, head in HEADS.items():
    # Replaced in the test module alone: the mappings of transformers itself stay as they are.
    ours = {family.config_class.model_type: family.prefix + head for family in FAMILIES}
    setattr(common, mapping_name, {**getattr(common, mapping_name), **ours})


class ModelTester:
    """The tiny configuration and inputs of a family, under the names by which the mixins read them."""

    is_training = True
    batch_size = 13
    seq_length = 7
    num_labels = 3

    def __init__(self, family: Family):
        self.sizes = {**TINY, **family.sizes}
        self.__dict__.update(self.sizes)
        self.config_class = family.config_class
        self.base_model_class = family.model_class("Model")
        self.causal_lm_class = family.model_class("ForCausalLM")
        self.sequence_classification_class = family.model_class("ForSequenceClassification")

    def get_config(self) -> PreTrainedConfig:
        return self.config_class(**self.sizes, pad_token_id=0, bos_token_id=1, eos_token_id=2)

    def prepare_config_and_inputs_for_common(self) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
        config = self.get_config()
        config.num_labels = self.num_labels
        input_ids = common.ids_tensor([self.batch_size, self.seq_length], self.vocab_size)
        # Rows of every length, padded on the right.
        attention_mask = torch.ones_like(input_ids).tril()
        return config, {"input_ids": input_ids, "attention_mask": attention_mask}


def make_model_tests(family: Family) -> dict[str, Any]:
    def set_up(self):
        self.model_tester = ModelTester(family)

    return {
        "setUp": set_up,
        "model_tester": None,
        "all_model_classes": tuple(map(family.model_class, HEADS.values())),
        # Skipped otherwise: a file without a copyright year counts as older than 2023.
        "test_can_init_all_missing_weights_before_2023": True,
        # Takes an accelerator and RUN_SLOW=1.
        "_torch_compile_train_cls": family.model_class("ForCausalLM"),
        **dict.fromkeys(LEFT_OUT + family.left_out),
    }


def make_config_tests(family: Family) -> dict[str, Any]:
    def make_test(check: str):
        def test(self):
            # `ConfigTester` reads the model tester off its parent.
            self.model_tester = ModelTester(family)
            getattr(ConfigTester(self, config_class=family.config_class, **self.model_tester.sizes), check)()

        return test

    checks = [name for name in vars(ConfigTester) if name.startswith(("create_and_test_", "check_"))]
    return {f"test_{check.removeprefix('create_and_test_')}": make_test(check) for check in checks}


for family in FAMILIES:
    for mixin_name, bases, make_tests in (
        ("ModelTesterMixin", (common.ModelTesterMixin, unittest.TestCase), make_model_tests),
        ("TrainingTesterMixin", (TrainingTesterMixin, unittest.TestCase), make_model_tests),
        ("ConfigTester", (unittest.TestCase,), make_config_tests),
    ):
        class_name = f"{family.name}{mixin_name}Test"
        globals()[class_name] = type(class_name, bases, make_tests(family))
