"""
`transformers serve` for the models of this package: an HTTP server with OpenAI's completions and chats, streamed too.

    pip install "transformers[serving]"
    python -m modeling_prism.serve outputs/quickstart --port 8000   # all options are those of `transformers serve`
"""

import json
import sys

import transformers
from transformers.cli.transformers import app

import modeling_prism


# A story has no speakers: the messages are its parts.
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def register():
    """transformers' server looks the class of a model up among transformers' own."""
    for name in modeling_prism.__all__:
        if name.endswith("ForCausalLM"):
            setattr(transformers, name, getattr(modeling_prism, name))


def template_options(folder: str) -> list[str]:
    """Options that give chats a template where the tokenizer has none."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return [] if tokenizer.chat_template else ["--chat-template-kwargs", json.dumps({"chat_template": TEMPLATE})]


def main(argv: list[str]):
    register()
    app(["serve", *argv, *(template_options(argv[0]) if argv and not argv[0].startswith("-") else ())])


if __name__ == "__main__":
    main(sys.argv[1:])
