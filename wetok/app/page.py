"""The page: what stands where, and what happens when something is touched; it computes nothing.

photo, sample or .wetok -> Desk -> Seen, kept for the visitor -> pictures, numbers, tokens
Seen -> Desk -> codecs, damage, what was invented
"""

from __future__ import annotations

import functools
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from wetok.app import words
from wetok.app.damage import FLIP, KINDS, RANDOM, SHUFFLE, SWAP, ZERO
from wetok.app.desk import MOST_SEED, Desk
from wetok.app.groups import group_pictures
from wetok.app.making import ANY, MOST
from wetok.app.maps import MOST_SEEDS, difference
from wetok.app.rivals import Rival, usable
from wetok.app.seen import Seen
from wetok.config import WetokError
from wetok.data.images import load_image

CSS = Path(__file__).parent.parent / "assets" / "app" / "page.css"
SESSION_SECONDS = 3600
_LEAD = (
    "A photograph becomes a few discrete tokens, and the tokens a photograph again. Drop one in "
    "and see what is kept, what is lost, and what each token holds."
)
_HEAVY: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
_HIDDEN: dict[str, Any] = {"api_visibility": "private"}


def theme() -> gr.themes.Base:
    """Quiet colours and the system's own fonts, so that none is fetched."""
    quiet = gr.themes.Base(
        primary_hue="teal",
        neutral_hue="slate",
        radius_size="md",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "monospace"],
    )
    return quiet.set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_label_text_color="*neutral_600",
        block_title_text_color="*neutral_700",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
    )


class Outbox:
    """Files for visitors to download, until they are an hour old."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, name: str, content: bytes) -> str:
        """Writes a file of that name in a folder of its own; returns its path."""
        for old in self.folder.iterdir():
            if time.time() - old.stat().st_mtime > SESSION_SECONDS:
                for file in old.iterdir():
                    file.unlink(missing_ok=True)
                old.rmdir()
        own = self.folder / secrets.token_hex(16)
        own.mkdir()
        (own / name).write_bytes(content)
        return str(own / name)


def build(desk: Desk, outbox: Outbox) -> gr.Blocks:
    """The page for what `desk` can do."""
    page = gr.Blocks(
        title="wetok", analytics_enabled=False, delete_cache=(600, SESSION_SECONDS), fill_width=True
    )
    with page:
        _Page(page, desk, outbox)
    page.queue(max_size=64, api_open=False, default_concurrency_limit=4)
    return page


class _Page:
    """The parts of the page, by name, and what they do to one another."""

    def __init__(self, page: gr.Blocks, desk: Desk, outbox: Outbox) -> None:
        self.desk, self.outbox = desk, outbox
        self.seen = gr.State(None, time_to_live=SESSION_SECONDS)
        self.rivals = gr.State(None, time_to_live=SESSION_SECONDS)
        gr.HTML(f"<h1>wetok</h1><p>{_LEAD}</p>", elem_id="lead")
        with gr.Row(elem_id="main"):
            with gr.Column(scale=2, min_width=250):
                self._inputs()
            with gr.Column(scale=5, min_width=250):
                self._results()
                with gr.Tabs(elem_id="tabs"):
                    self._looks()
                    self._codecs()
                    self._damage()
                    self._invented()
                    if desk.maker is not None:
                        self._maker()
        self._wire(page)

    # What stands where

    def _inputs(self) -> None:
        first = self.desk.models.labels[0]
        tokenizer = self.desk.models.get(first)
        self.photo = gr.Image(
            label="Photo",
            type="filepath",
            image_mode=None,
            sources=["upload", "clipboard"],
            height=220,
            elem_id="photo",
            buttons=[],
            placeholder="Drop a photo here, or tap to choose one",
        )
        # Gradio would open, and perhaps decode, the file; `open_photo` looks at its header first.
        self.photo.preprocess = _path_of  # type: ignore[method-assign]
        self.samples = gr.Gallery(
            [(str(path), path.stem) for path in self.desk.samples],
            label="Or one of these",
            columns=3,
            height="auto",
            allow_preview=False,
            interactive=False,
            object_fit="cover",
            buttons=[],
            elem_id="samples",
        )
        self.model = gr.Dropdown(
            self.desk.models.labels, value=first, label="Model", elem_id="model", filterable=False
        )
        self.about = gr.HTML(words.about(tokenizer), elem_id="about")
        self.seed = gr.Number(
            0,
            label="Seed of the decoder's noise",
            precision=0,
            minimum=0,
            maximum=MOST_SEED,
            visible=tokenizer.config.generative,
            elem_id="seed",
        )
        self.open = gr.UploadButton("Open a .wetok file", size="md", elem_id="open")

    def _results(self) -> None:
        self.slider = gr.ImageSlider(
            label="Original | from tokens",
            format="png",
            max_height=560,
            interactive=False,
            elem_id="slider",
        )
        self.alone = gr.Image(
            label="From tokens",
            format="png",
            interactive=False,
            visible=False,
            elem_id="alone",
            buttons=["download", "fullscreen"],
        )
        self.facts = gr.HTML(elem_id="facts")
        self.save = gr.DownloadButton(
            "Download the tokens", size="md", interactive=False, elem_id="save"
        )

    def _looks(self) -> None:
        with gr.Tab("Difference", id="difference"):
            self.map = gr.Image(
                label="Difference",
                format="png",
                interactive=False,
                elem_id="map",
                buttons=["download", "fullscreen"],
            )
            self.map_scale = gr.HTML(elem_id="map-scale")
        with gr.Tab("Numbers", id="numbers"):
            self.numbers = gr.HTML(elem_id="numbers")
        with gr.Tab("Tokens", id="tokens"):
            self.groups = gr.HTML(elem_id="groups")

    def _codecs(self) -> None:
        with gr.Tab("Codecs", id="codecs"):
            gr.HTML(
                words.plain(
                    "The same photo by classical codecs, each in no more bytes than the tokens "
                    "take."
                )
            )
            self.compare = gr.Button("Compare", variant="primary", elem_id="compare")
            self.rivals_table = gr.HTML(elem_id="rivals")
            self.rival = gr.Radio(
                [], label="Beside the tokens", visible=False, elem_id="rival", interactive=True
            )
            self.rival_slider = gr.ImageSlider(
                label="From tokens | codec",
                format="png",
                max_height=560,
                interactive=False,
                visible=False,
                elem_id="rival-slider",
            )

    def _damage(self) -> None:
        with gr.Tab("Damage", id="damage"):
            gr.HTML(words.plain("Change some tokens, and see what becomes of the picture."))
            self.kind = gr.Radio(list(KINDS), value=RANDOM, label="What happens", elem_id="kind")
            self.percent = gr.Slider(
                0, 100, 5, step=0.5, label="Share of the tokens (%)", elem_id="percent"
            )
            self.group = gr.Dropdown([1], value=1, label="Group", visible=False, elem_id="group")
            with gr.Row(visible=False, elem_id="box") as self.box:
                self.sides = [
                    gr.Slider(0, 100, value, step=1, label=f"{name} (%)", min_width=130)
                    for name, value in (("Left", 30), ("Top", 30), ("Width", 40), ("Height", 40))
                ]
            self.other = gr.Image(
                label="The other photo",
                type="filepath",
                image_mode=None,
                value=str(self.desk.samples[-1]) if self.desk.samples else None,
                sources=["upload", "clipboard"],
                height=180,
                visible=False,
                elem_id="other",
                buttons=[],
            )
            self.other.preprocess = _path_of  # type: ignore[method-assign]
            self.chance = gr.Number(
                0, label="Seed of the damage", precision=0, elem_id="chance", maximum=MOST_SEED
            )
            self.hurt = gr.Button("Damage the tokens", variant="primary", elem_id="hurt")
            self.hurt_facts = gr.HTML(elem_id="hurt-facts")
            self.hurt_slider = gr.ImageSlider(
                label="From tokens | from damaged tokens",
                format="png",
                max_height=560,
                interactive=False,
                visible=False,
                elem_id="hurt-slider",
            )

    def _invented(self) -> None:
        first = self.desk.models.get(self.desk.models.labels[0])
        with gr.Tab("Invented", id="invented"):
            self.no_invention = gr.HTML(
                words.plain(
                    "This model's decoder is deterministic: the same tokens always give the same "
                    "picture, so nothing is invented."
                ),
                visible=not first.config.generative,
                elem_id="no-invention",
            )
            with gr.Column(visible=first.config.generative) as self.invention:
                gr.HTML(
                    words.plain(
                        "A generative decoder draws what the tokens don't tell. Where pictures of "
                        "several seeds differ, it was invented."
                    )
                )
                self.seeds = gr.Slider(
                    2, MOST_SEEDS, 4, step=1, label="Seeds to compare", elem_id="seeds"
                )
                self.invent = gr.Button("Show what was invented", variant="primary")
                self.invented = gr.Image(
                    label="Invented",
                    format="png",
                    interactive=False,
                    elem_id="invented-map",
                    buttons=["download", "fullscreen"],
                    visible=False,
                )
                self.invented_scale = gr.HTML()

    def _maker(self) -> None:
        assert self.desk.maker is not None
        classes = self.desk.maker.classes
        with gr.Tab("Generate", id="generate"):
            gr.HTML(words.plain(f"New pictures by the generator {self.desk.maker.name}."))
            self.wanted = gr.Dropdown(
                [ANY, *classes],
                value=classes[0] if classes else ANY,
                label="Class",
                visible=bool(classes),
                elem_id="wanted",
            )
            with gr.Row():
                self.count = gr.Slider(1, MOST, 4, step=1, label="Pictures", min_width=130)
                self.temperature = gr.Slider(0, 2, 1, step=0.05, label="Temperature", min_width=130)
                self.guidance = gr.Slider(
                    1, 8, 1, step=0.25, label="Guidance", min_width=130, visible=bool(classes)
                )
                self.first_seed = gr.Number(
                    0, label="First seed", precision=0, minimum=0, maximum=MOST_SEED, min_width=130
                )
            self.generate = gr.Button("Generate", variant="primary", elem_id="generate")
            self.made = gr.Gallery(
                label="Generated",
                format="png",
                columns=3,
                height="auto",
                object_fit="contain",
                interactive=False,
                visible=False,
                buttons=["download", "fullscreen"],
                elem_id="made",
            )

    # What happens

    def _wire(self, page: gr.Blocks) -> None:
        desk, shown = self.desk, self._shown_parts()
        chosen = [self.model, self.seed]
        heavy = {**_HEAVY, "show_progress_on": [self.slider, self.alone]}

        def on_photo(path: Any, label: Any, seed: Any) -> dict[Any, Any]:
            return self._show(desk.photo(path, label, seed))

        def on_sample(label: Any, seed: Any, event: gr.SelectData) -> dict[Any, Any]:
            index = event.index if isinstance(event.index, int) else -1
            return self._show(desk.sample(index, label, seed)) | {
                self.photo: str(desk.samples[index])
            }

        def on_start(label: Any, seed: Any) -> dict[Any, Any]:
            return self._show(desk.sample(0, label, seed)) | {self.photo: str(desk.samples[0])}

        def on_file(path: Any, seed: Any) -> dict[Any, Any]:
            return self._show(desk.tokens(path, seed)) | {self.photo: None}

        def on_choice(seen: Any, label: Any, seed: Any) -> dict[Any, Any]:
            if seen is None:
                return self._model_changed(label)
            if seed is None:  # the field is empty while somebody types
                return {self.seen: seen}
            try:
                found = desk.again(seen, label, seed)
            except WetokError as error:  # tokens of another model: back to their own
                gr.Warning(str(error))
                return self._model_changed(seen.label) | {self.model: seen.label}
            return {self.seen: seen} if found is seen else self._show(found)

        def reconstruct(path: Any, label: Any, seed: Any) -> dict[Any, Any]:
            return on_photo(path, label, seed)

        self.photo.upload(
            _polite(reconstruct), [self.photo, *chosen], shown, api_name="reconstruct", **heavy
        )
        self.samples.select(_polite(on_sample), chosen, [*shown, self.photo], **heavy, **_HIDDEN)
        self.open.upload(
            _polite(on_file),
            [self.open, self.seed],
            [*shown, self.photo],
            api_name="open",
            **heavy,
        )
        for part in (self.model, self.seed):
            part.input(
                _polite(on_choice),
                [self.seen, *chosen],
                shown,
                trigger_mode="always_last",
                **heavy,
                **_HIDDEN,
            )
        if desk.samples:
            page.load(_polite(on_start), chosen, [*shown, self.photo], **heavy, **_HIDDEN)
        self._wire_codecs()
        self._wire_damage()
        self._wire_invented()

    def _wire_codecs(self) -> None:
        desk, titles = self.desk, [codec.title for codec in usable()]

        def on_compare(seen: Any) -> Iterator[dict[Any, Any]]:
            found: list[Rival] = []
            for one in desk.rivals(seen):
                found.append(one)
                first = (
                    {}
                    if len(found) > 1
                    else {
                        self.rival_slider: gr.update(
                            value=(seen.again, one.coded.image), visible=True
                        )
                    }
                )
                yield {
                    self.rivals: (seen, list(found)),
                    self.rivals_table: words.rivals(seen, found, titles[len(found) :]),
                    self.rival: gr.update(
                        choices=[rival.title for rival in found], value=found[0].title, visible=True
                    ),
                    **first,
                }

        def on_rival(kept: Any, title: Any) -> Any:
            for one in kept[1] if kept else ():
                if one.title == title:
                    seen = kept[0]
                    return gr.update(value=(seen.again, one.coded.image), visible=True)
            return gr.update()

        self.compare.click(
            _polite_each(on_compare),
            [self.seen],
            [self.rivals, self.rivals_table, self.rival, self.rival_slider],
            show_progress_on=[self.rivals_table],
            **_HEAVY,
            **_HIDDEN,
        )
        self.rival.input(on_rival, [self.rivals, self.rival], [self.rival_slider], **_HIDDEN)

    def _wire_damage(self) -> None:
        desk = self.desk

        def on_kind(kind: Any) -> dict[Any, Any]:
            what = "bits" if kind == FLIP else "tokens"
            return {
                self.percent: gr.update(
                    visible=kind in (RANDOM, FLIP), label=f"Share of the {what} (%)"
                ),
                self.group: gr.update(visible=kind == ZERO),
                self.box: gr.update(visible=kind in (SHUFFLE, SWAP)),
                self.other: gr.update(visible=kind == SWAP),
                self.chance: gr.update(visible=kind in (RANDOM, FLIP, SHUFFLE)),
            }

        def on_hurt(
            seen: Any, kind: Any, percent: Any, group: Any, other: Any, seed: Any, *sides: Any
        ) -> dict[Any, Any]:
            left, top, width, height = sides
            found = desk.hurt(
                seen,
                kind,
                percent=percent,
                group=group,
                box=(left, top, width, height),
                other=other,
                seed=seed,
            )
            return {
                self.hurt_facts: words.after_damage(
                    found.result, found.to_original, found.to_again, seen.closeness
                ),
                self.hurt_slider: gr.update(value=(seen.again, found.picture), visible=True),
            }

        self.kind.change(
            on_kind,
            [self.kind],
            [self.percent, self.group, self.box, self.other, self.chance],
            show_progress="hidden",
            **_HIDDEN,
        )
        self.hurt.click(
            _polite(on_hurt),
            [self.seen, self.kind, self.percent, self.group, self.other, self.chance, *self.sides],
            [self.hurt_facts, self.hurt_slider],
            show_progress_on=[self.hurt_slider, self.hurt_facts],
            **_HEAVY,
            **_HIDDEN,
        )

    def _wire_invented(self) -> None:
        desk = self.desk

        def on_invent(seen: Any, count: Any) -> dict[Any, Any]:
            found = desk.invent(seen, count)
            return {
                self.invented: gr.update(value=found.picture, visible=True),
                self.invented_scale: words.invented_scale(found, int(count)),
            }

        self.invent.click(
            _polite(on_invent),
            [self.seen, self.seeds],
            [self.invented, self.invented_scale],
            **_HEAVY,
            **_HIDDEN,
        )
        if desk.maker is None:
            return

        def on_generate(wanted: Any, count: Any, seed: Any, temperature: Any, guidance: Any) -> Any:
            made = desk.make(wanted, count, seed, temperature, guidance)
            named = [(picture, f"seed {int(seed) + index}") for index, picture in enumerate(made)]
            return gr.update(value=named, visible=True)

        self.generate.click(
            _polite(on_generate),
            [self.wanted, self.count, self.first_seed, self.temperature, self.guidance],
            [self.made],
            api_name="generate",
            **_HEAVY,
        )

    # What is shown of a picture

    def _shown_parts(self) -> list[Any]:
        return [
            *(self.seen, self.slider, self.alone, self.facts, self.save, self.numbers),
            *(
                self.map,
                self.map_scale,
                self.groups,
                self.group,
                self.model,
                self.about,
                self.seed,
                self.no_invention,
            ),
            *(self.invention, self.rivals, self.rivals_table, self.rival, self.rival_slider),
            *(self.hurt_facts, self.hurt_slider, self.invented, self.invented_scale),
        ]

    def _show(self, seen: Seen) -> dict[Any, Any]:
        """Everything about a picture; what was shown of another goes."""
        found = None if seen.original is None else difference(seen.original, seen.again)
        count = seen.tokens.ids.shape[1]
        stem = Path(seen.name).stem or "photo"
        file = self.outbox.put(f"{stem}.wetok", seen.file)
        pair = None if seen.original is None else (seen.original, seen.again)
        gone = gr.update(value=None, visible=False)
        return {
            self.seen: seen,
            self.slider: gr.update(value=pair, visible=pair is not None),
            self.alone: gr.update(value=None if pair else seen.again, visible=pair is None),
            self.facts: words.facts(seen),
            self.numbers: words.all_numbers(seen),
            self.save: gr.update(
                value=file,
                label=f"Download {stem}.wetok ({words.kilobytes(len(seen.file))})",
                interactive=True,
            ),
            self.map: gr.update(
                value=None if found is None else found.picture, visible=found is not None
            ),
            self.map_scale: words.plain("There is no original to compare with.")
            if found is None
            else words.difference_scale(found),
            self.groups: words.groups(group_pictures(seen.tokens), seen.tokens.group_bits),
            self.group: gr.update(choices=list(range(1, count + 1)), value=1),
            self.model: seen.label,
            **self._model_changed(seen.label),
            self.rivals: None,
            self.rivals_table: "",
            self.rival: gr.update(choices=[], value=None, visible=False),
            self.rival_slider: gone,
            self.hurt_facts: "",
            self.hurt_slider: gone,
            self.invented: gone,
            self.invented_scale: "",
        }

    def _model_changed(self, label: Any) -> dict[Any, Any]:
        tokenizer = self.desk.models.get(label)
        generative = tokenizer.config.generative
        return {
            self.about: words.about(tokenizer),
            self.seed: gr.update(visible=generative),
            self.no_invention: gr.update(visible=not generative),
            self.invention: gr.update(visible=generative),
        }


def copy_samples(folder: Path, photos: list[Path]) -> list[Path]:
    """The sample photographs as files that the page may serve."""
    folder.mkdir(parents=True, exist_ok=True)
    copies = []
    for photo in photos:
        copy = folder / photo.name
        copy.write_bytes(photo.read_bytes())
        load_image(copy)  # a broken one should be known at the start
        copies.append(copy)
    return copies


def _path_of(payload: Any) -> str | None:
    """Where an uploaded picture lies."""
    return None if payload is None else payload.path


def _told(error: WetokError) -> gr.Error:
    """A mistake of the visitor's, as the page tells it: a sentence, and no traceback in the log."""
    text = str(error)
    return gr.Error(text[:1].upper() + text[1:], duration=12, print_exception=False)


def _polite(action: Callable[..., Any]) -> Callable[..., Any]:
    """`action`, whose `WetokError`s are told to the visitor."""

    @functools.wraps(action)
    def told(*arguments: Any) -> Any:
        try:
            return action(*arguments)
        except WetokError as error:
            raise _told(error) from None

    return told


def _polite_each(action: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """`_polite` for what gives its results one after the other."""

    @functools.wraps(action)
    def told(*arguments: Any) -> Iterator[Any]:
        try:
            yield from action(*arguments)
        except WetokError as error:
            raise _told(error) from None

    return told
