"""`puna demo`: the whole story on a tiny Llama, real in every part, with a verdict at the end."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from puna import demo as parts
from puna import pipeline
from puna.artifacts import Adapter, write_json
from puna.cli import output
from puna.cli.options import AsJson
from puna.config import recipe as recipes
from puna.errors import StageError
from puna.home import Home

if TYPE_CHECKING:
    from puna.client import Client
    from puna.pipeline import Prepared
    from puna.publish.registry import RegisteredVersion

NAME = "tiny-llama"
MODEL = "puna/tiny-llama"
MAX_NEW_TOKENS = 64
RIGHT_SHARE = 0.9  # of the held-out questions, after tuning
SCALE_DOWN_DELAY_S = 2.0
WARM_CALLS = 5


@dataclass
class Story:
    """The story so far: seconds a stage, figures, and whether each promise held."""

    quiet: bool
    stages: dict[str, float] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    checks: dict[str, bool] = field(default_factory=dict)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time one stage, and say that it has begun and ended."""
        began = time.perf_counter()
        if not self.quiet:
            output.note(f"── {name}")
        yield
        self.stages[name] = round(time.perf_counter() - began, 2)

    def check(self, promise: str, held: bool, **figures: Any) -> None:
        """Note a promise, whether it held, and the figures that show it."""
        self.checks[promise] = held
        self.figures |= figures
        if not self.quiet:
            output.note(f"   {'ok  ' if held else 'FAIL'} {promise}")


def demo(
    report: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("demo-report.json"),
    keep: Annotated[bool, typer.Option("--keep", help="Keep the throw-away home, to look around in it.")] = False,
    json: AsJson = False,
) -> None:
    """Tune, merge, verify, publish, build, deploy, call, scale to zero and wake a tiny Llama; about two minutes."""
    story = Story(quiet=json)
    began = time.perf_counter()
    # Beside the real home, on its disk: hard links into the environment's cache work there.
    home = Home(Home.default().folder("demo", f"{time.time_ns():x}"))
    watch = output.ProgressDisplay(quiet=json, hide=" + ")  # forty lines of installed packages tell no story
    try:
        version = _train_to_publish(story, home, watch)
        _serve(story, home, version, watch)
    finally:
        watch.close()
        if not keep:
            shutil.rmtree(home.root, ignore_errors=True)
            shutil.rmtree(home.sockets, ignore_errors=True)
    story.figures["seconds"] = round(time.perf_counter() - began, 1)
    passed = all(story.checks.values())
    values = {"passed": passed, "stages_s": story.stages, **story.figures, "checks": story.checks}
    write_json(report, values)
    output.data(values) if json else _summary(story, report, home if keep else None)
    if not passed:
        broken = ", ".join(name for name, held in story.checks.items() if not held)
        raise StageError(f"the demo did not hold: {broken}", f"see {report}")


# ------------------------------------------------------------------ from text to a named model


def _train_to_publish(story: Story, home: Home, watch: output.ProgressDisplay) -> RegisteredVersion:
    with story.stage("data: conversations become tokens"):
        prepared = pipeline.prepare(recipes.load(parts.RECIPE), home, watch)
    with story.stage("train: QLoRA on NF4"):
        run = pipeline.train(prepared, home, watch)
        watch.close()
    with story.stage("ask: held-out questions, before and after"):
        _ask(story, prepared, home, run)
    with story.stage("merge: one model, verified"):
        merged = pipeline.merge(run, home, watch)
        watch.close()
        same, figures = merged.verification.passed, dataclasses.asdict(merged.verification)
        story.check("the merged model is the trained one", same, merge=figures, merge_why=merged.why)
    with story.stage("publish: a name and a version"):
        version = pipeline.publish(run, MODEL, home)
        story.figures["model"] = f"{version.name}:{version.version} {version.digest[:16]}"
    return version


def _ask(story: Story, prepared: Prepared, home: Home, run: str) -> None:
    from transformers import AutoTokenizer

    from puna.train.trained import load_base, load_trained

    recipe, found = prepared.recipe, pipeline.find_run(home, run)
    before = load_base(prepared.base.path, recipe, prepared.dataset)
    after = load_trained(Adapter.open(found.path / "adapter"), prepared.base.path, recipe)
    tokenizer = AutoTokenizer.from_pretrained(prepared.dataset.path / "tokenizer", local_files_only=True)
    stops = list(prepared.dataset.manifest.metrics["stop_token_ids"])
    rows = []
    for question in parts.questions():
        chat = [{"role": "user", "content": question.text}]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        told = [model.reply(prompt, MAX_NEW_TOKENS, stops) for model in (before, after)]
        texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in told]
        # A reply that was cut at the limit has not stopped; one that stopped comes without its stop token.
        rows.append((question.text, *texts, *(len(ids) < MAX_NEW_TOKENS for ids in told)))
    asked, stopped = len(rows), [sum(row[3] for row in rows), sum(row[4] for row in rows)]
    right = [sum(parts.is_right(row[0], row[i]) for row in rows) for i in (1, 2)]
    evals = [line["eval_loss"] for line in found.metrics() if line.get("eval_loss") is not None]
    question, reply_before, reply_after = rows[0][:3]
    story.figures |= {"question": question, "reply_before": reply_before, "reply_after": reply_after, "asked": asked}
    story.check("tuning lowers the held-out loss", evals[-1] < evals[0], loss_before=evals[0], loss_after=evals[-1])
    story.check("before tuning the base never stops", stopped[0] == 0, stopped_before=stopped[0])
    story.check("after tuning every reply stops", stopped[1] == asked, stopped_after=stopped[1])
    enough = right[1] >= RIGHT_SHARE * asked
    story.check("after tuning held-out questions are answered", enough, right_before=right[0], right_after=right[1])


# ------------------------------------------------------------------ from a name to an endpoint


def _serve(story: Story, home: Home, version: RegisteredVersion, watch: output.ProgressDisplay) -> None:
    from puna.cli.running import running
    from puna.client import Client
    from puna.packaging.template import init

    folder = home.folder("app", NAME)
    with story.stage("init: the four files of an app"):
        init(folder, version.name, name=NAME, engine="transformers")
    with contextlib.ExitStack() as stack:
        with story.stage("up: control plane and gateway"):
            stack.enter_context(running(home))
            client = stack.enter_context(contextlib.closing(Client(home=home)))
        with story.stage("runtime: a virtual environment of its own"):
            pipeline.upload_runtime(client, folder / "inferless-runtime-config.yaml", NAME, watch)
        with story.stage("deploy: build, validate, start, swap"):
            settings = {"min_replica": 0, "max_replica": 1, "scale_down_delay_s": 3600.0}
            done = pipeline.deploy(client, folder, NAME, runtime=NAME, settings=settings, progress=watch)
            story.figures |= {"url": done["url"], "revision": done["revision"]}
        with story.stage("call: real HTTP"):
            _call_warm(story, client)
        with story.stage("sleep: scale to zero"):
            _wait_for_zero(story, client)
        with story.stage("wake: a request to an endpoint with no replica"):
            _call_cold(story, client)


def _call_warm(story: Story, client: Client) -> None:
    reply, seconds, _ = _call(story, client)
    same = reply.strip() == story.figures["reply_after"].strip()
    story.check("the endpoint answers as the trained model did", same, endpoint_reply=reply)
    times = [_call(story, client)[1] for _ in range(WARM_CALLS)]
    story.figures |= {"first_call_s": round(seconds, 3), "warm_call_s": round(statistics.median(times), 3)}


def _call(story: Story, client: Client) -> tuple[str, float, Mapping[str, str]]:
    from puna.cli.commands.call import infer

    reply = infer(client, NAME, {"prompt": story.figures["question"]})
    return str(reply.outputs["generated_text"]), reply.seconds, reply.headers


def _wait_for_zero(story: Story, client: Client) -> None:
    client.patch(NAME, scale_down_delay_s=SCALE_DOWN_DELAY_S)
    began = time.perf_counter()
    while client.endpoint(NAME)["replicas"] and time.perf_counter() - began < 30:
        time.sleep(0.1)
    gone = not client.endpoint(NAME)["replicas"]
    story.check("an idle endpoint goes to zero", gone, to_zero_s=round(time.perf_counter() - began, 1))


def _call_cold(story: Story, client: Client) -> None:
    client.patch(NAME, scale_down_delay_s=3600)
    reply, seconds, headers = _call(story, client)
    waited = {k.removeprefix("x-puna-"): v for k, v in headers.items() if k.startswith("x-puna-") and k.endswith("-ms")}
    same = reply.strip() == story.figures["endpoint_reply"].strip()
    story.check("a call wakes it and gets the same answer", same, cold_start_s=round(seconds, 2), cold_ms=waited)


# ------------------------------------------------------------------ what is shown


def _summary(story: Story, report: Path, kept: Home | None) -> None:
    f, merge = story.figures, story.figures["merge"]
    output.line("\nstage" + " " * 47 + "seconds")
    for name, seconds in story.stages.items():
        output.line(f"{name:<52}{seconds:>7.1f}")
    output.line(f"{'all':<52}{f['seconds']:>7.1f}\n")
    output.line(f"Q: {f['question']}")
    output.line(f"before tuning: {' '.join(f['reply_before'].split())[:160]} …")
    output.line(f"after tuning:  {f['reply_after']}\n")
    output.pairs(
        {
            "held-out loss": f"{f['loss_before']:.3f} before, {f['loss_after']:.3f} after",
            "held-out questions": f"{f['right_before']} of {f['asked']} right before, {f['right_after']} after",
            "replies that stop": f"{f['stopped_before']} of {f['asked']} before, {f['stopped_after']} after",
            "merged and trained": f"loss {merge['merged_loss']:.4f} and {merge['trained_loss']:.4f}, logits differ by "
            f"{merge['logits_mean_diff']:.2g} on average, replies equal {merge['replies_equal']}",
            "merged onto": f["merge_why"],
            "model": f["model"],
            "endpoint": f["url"],
            "endpoint's reply": f["endpoint_reply"],
            "warm call": f"{f['warm_call_s']:.3f} s, median of {WARM_CALLS}",
            "cold start": f"{f['cold_start_s']:.2f} s from no process to the reply, the app's own imports included",
            "report": report,
        }
        | ({"home kept": kept.root} if kept else {})
    )
    output.line()
    for promise, held in story.checks.items():
        output.line(f"{'ok  ' if held else 'FAIL'} {promise}", style="green" if held else "bold red")
