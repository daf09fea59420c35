"""Chat templates: a conversation as text, and which part of that text the assistant wrote."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path

from puna.data.conversation import BadRowError, Message
from puna.errors import DataError, nearest

BUILT_IN = ("chatml", "llama3")
GENERATION = re.compile(r"(\{%[-+]?\s*)(generation|endgeneration)(\s*[-+]?%\})")
PROBE = "7f3a"  # stands for a reply whose end is looked for

Span = tuple[int, int]
"""Characters from and to (exclusive)."""


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template in two variants that render the same text; special tokens are bound when it is known whose."""

    name: str
    training: str
    """The variant that may mark the assistant's words with `{% generation %}`."""
    inference: str
    """The variant that ships with the model: older stacks do not know that tag."""
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    """`bos_token` and the like, as templates name them."""

    def render(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
        """The text of a conversation, as a server renders it.

        Raises:
            BadRowError: the template refuses the conversation.
        """
        return self._render(messages, marked=False, generation_prompt=generation_prompt)[0]

    def render_marked(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """The text of a conversation and the characters in it that the assistant wrote, end tokens included.

        Raises:
            BadRowError: the template refuses the conversation, or does not show where the assistant's turns end.
        """
        if GENERATION.search(self.training):
            return self._render(messages, marked=True, generation_prompt=False)
        text = self.render(messages)
        return text, [self._turn(messages, i, text) for i, m in enumerate(messages) if m["role"] == "assistant"]

    @cached_property
    def reply_end(self) -> str:
        """The template's text after a reply, without white space in front: it begins with the token to stop at."""
        try:
            text = self.render([Message(role="user", content="?"), Message(role="assistant", content=PROBE)])
        except BadRowError as problem:
            raise DataError(f"chat template {self.name} fails: {problem}") from None
        if PROBE not in text:
            raise DataError(f"chat template {self.name} leaves out what the assistant says")
        return text.rpartition(PROBE)[2].lstrip()

    def _turn(self, messages: Sequence[Message], index: int, text: str) -> Span:
        # Without marks, a turn is what its message adds to the text of those before it.
        before = self.render(messages[:index], generation_prompt=True)
        until = self.render(messages[: index + 1])
        if not (until.startswith(before) and text.startswith(until)):
            raise BadRowError(
                f"chat template {self.name} does not show which text is the assistant's: "
                "put {% generation %} ... {% endgeneration %} around it, or set `data.loss_on: all`"
            )
        # The newline after an end token belongs to the frame, not to the reply.
        end = len(until.rstrip()) if until.rstrip().endswith(self.reply_end.rstrip()) else len(until)
        return len(before), end

    def _render(self, messages: Sequence[Message], *, marked: bool, generation_prompt: bool) -> tuple[str, list[Span]]:
        # Transformers' own renderer (sandboxed, as every server uses it); imported here as it takes a second.
        import jinja2
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, spans = render_jinja_template(
                conversations=[list(messages)],
                chat_template=self.training if marked else self.inference,
                return_assistant_tokens_mask=marked,
                add_generation_prompt=generation_prompt,
                **self.special_tokens,
            )
        except jinja2.TemplateSyntaxError as problem:
            raise DataError(f"chat template {self.name} line {problem.lineno}: {problem.message}") from None
        except (jinja2.TemplateError, TypeError, ValueError, AttributeError) as problem:
            raise BadRowError(f"chat template {self.name} refuses it: {problem}") from None
        return texts[0], [(int(a), int(b)) for a, b in spans[0]] if marked else []


def load_template(name: str) -> ChatTemplate:
    """A built-in template or a Jinja file.

    Raises:
        DataError: no such template or file.
    """
    if name in BUILT_IN:
        folder = resources.files("puna.data") / "templates"
        training = (folder / f"{name}.training.jinja").read_text(encoding="utf-8")
        return ChatTemplate(name, training, (folder / f"{name}.jinja").read_text(encoding="utf-8"))
    path = Path(name).expanduser()
    try:
        source = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        hint = nearest(name, BUILT_IN) or f"`data.template` is {' or '.join(BUILT_IN)}, or a Jinja file"
        raise DataError(f"there is no chat template {name}", hint) from None
    except (OSError, UnicodeDecodeError) as problem:
        raise DataError(f"chat template {name} cannot be read: {problem}") from None
    return ChatTemplate(path.name, source, without_marks(source))


def without_marks(source: str) -> str:
    """The template without `generation` tags; a tag that prints nothing takes their place, so white space stays."""
    plain = {"generation": "if true", "endgeneration": "endif"}
    return GENERATION.sub(lambda tag: tag[1] + plain[tag[2]] + tag[3], source)
