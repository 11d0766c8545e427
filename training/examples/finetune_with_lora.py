"""
Fine-tunes a saved model with LoRA and merges the adapter, with PEFT and TRL.

    python -m training.examples.finetune_with_lora outputs/quickstart --output_dir outputs/lora --max_steps 100
"""

import sys
from pathlib import Path

import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser
from trl import SFTConfig, SFTTrainer

from modeling_prism import lora_targets
from training.tasks.stories import stories


def main(argv: list[str]) -> Path:
    parser = HfArgumentParser(SFTConfig)
    parser.add_argument("model", help="Folder or hub name of a trained model.")
    parser.set_defaults(learning_rate=1e-3, max_length=256, report_to="none", bf16=torch.cuda.is_available())
    arguments, rest = parser.parse_args_into_dataclasses(argv)

    model = AutoModelForCausalLM.from_pretrained(rest.model)
    tokenizer = AutoTokenizer.from_pretrained(rest.model)
    # "all-linear" would leave out Prism's dictionary, which is not a linear layer.
    lora = LoraConfig(r=8, lora_alpha=16, task_type="CAUSAL_LM", **lora_targets(model))
    # Your own texts go here: a dataset with a column "text".
    trainer = SFTTrainer(
        model, arguments, train_dataset=stories("train", 500), processing_class=tokenizer, peft_config=lora
    )
    trainer.train()

    folder = Path(arguments.output_dir) / "merged"
    trainer.model.merge_and_unload().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    print(main(sys.argv[1:]))
