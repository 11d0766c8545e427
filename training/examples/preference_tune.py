"""
Teaches a saved model to prefer one ending of a story over another, with TRL's direct preference optimisation.

    python -m training.examples.preference_tune outputs/quickstart --output_dir outputs/preferred --max_steps 100
"""

import sys
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser
from trl import DPOConfig, DPOTrainer

import modeling_prism  # noqa: F401  (registers the architectures)
from training.tasks.stories import stories


def endings(count: int) -> Dataset:
    """Beginnings of stories with their own ending, to be preferred, and that of another story."""
    halves = [text.strip().partition(". ") for text in stories("train", count)["text"]]
    return Dataset.from_dict(
        {
            "prompt": [first + dot for first, dot, _ in halves],
            "chosen": [rest for _, _, rest in halves],
            "rejected": [rest for _, _, rest in halves[1:] + halves[:1]],
        }
    )


def main(argv: list[str]) -> Path:
    parser = HfArgumentParser(DPOConfig)
    parser.add_argument("model", help="Folder or hub name of a trained model.")
    parser.set_defaults(learning_rate=1e-4, max_length=256, report_to="none", bf16=torch.cuda.is_available())
    arguments, rest = parser.parse_args_into_dataclasses(argv)

    model = AutoModelForCausalLM.from_pretrained(rest.model)
    reference = AutoModelForCausalLM.from_pretrained(rest.model)
    tokenizer = AutoTokenizer.from_pretrained(rest.model)
    # Your own preferences go here: a dataset with the columns "prompt", "chosen" and "rejected".
    trainer = DPOTrainer(model, reference, arguments, train_dataset=endings(500), processing_class=tokenizer)
    trainer.train()
    trainer.save_model()
    return Path(arguments.output_dir)


if __name__ == "__main__":
    print(main(sys.argv[1:]))
