"""Figures of the pages: SVG drawn from the configurations, `python -m docs.generate_figures` writes them."""

from __future__ import annotations

from html import escape

from csm.config import CSMConfig
from csm.model.flops import Work, training_flops

FONT = "font-family='Helvetica, Arial, sans-serif'"
TEXT, AUDIO, DEPTH, LINE = "#4878a8", "#d08a3c", "#5b9a5b", "#555555"


def svg(width: int, height: int, *parts: str) -> str:
    arrow = (
        "<defs><marker id='arrow' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='7' markerHeight='7' "
        f"orient='auto-start-reverse'><path d='M0 0L8 4L0 8z' fill='{LINE}'/></marker></defs>"
    )
    head = f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' {FONT}>"
    ground = f"<rect width='{width}' height='{height}' fill='white'/>"
    return "\n".join([head, arrow, ground, *parts, "</svg>", ""])


def box(x: float, y: float, width: float, height: float, label: str, color: str, size: int = 13) -> str:
    """A rounded box with a label of one or more lines in its middle."""
    lines = label.split("\n")
    first = y + height / 2 - (len(lines) - 1) * size * 0.6 + size * 0.35
    texts = "".join(
        f"<text x='{x + width / 2}' y='{first + i * size * 1.2:.1f}' font-size='{size}' text-anchor='middle' "
        f"fill='white'>{escape(line)}</text>"
        for i, line in enumerate(lines)
    )
    return f"<rect x='{x}' y='{y}' width='{width}' height='{height}' rx='4' fill='{color}'/>{texts}"


def note(x: float, y: float, text: str, size: int = 12, anchor: str = "start") -> str:
    return f"<text x='{x}' y='{y}' font-size='{size}' text-anchor='{anchor}' fill='#222222'>{escape(text)}</text>"


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    return f"<path d='M{x1} {y1}L{x2} {y2}' stroke='{LINE}' fill='none' marker-end='url(#arrow)'/>"


def architecture(config: CSMConfig) -> str:
    """The two stacks at one position: what the backbone reads, what it predicts, what the depth decoder adds."""
    k, v = config.num_codebooks, config.audio_vocab_size
    wide, narrow = config.backbone.dim, config.decoder.dim
    parts = [
        note(20, 24, "one position of the backbone", 14),
        box(20, 360, 150, 44, f"text id\n[{config.text_vocab_size}, {wide}]", TEXT),
        box(185, 360, 150, 44, f"{k} codes, summed\n[{k} x {v}, {wide}]", AUDIO),
        note(178, 350, "+", 16, "middle"),
        arrow(178, 338, 178, 302),
        box(20, 250, 315, 50, f"backbone: {config.backbone.layers} layers, width {wide}", TEXT),
        note(192, 326, "earlier positions: text and frames"),
        arrow(178, 250, 178, 216),
        note(188, 238, f"state h [{wide}], after the final norm"),
        box(20, 160, 150, 54, f"codebook-0 head\n[{wide}, {v}]", AUDIO),
        arrow(95, 160, 95, 122),
        box(55, 84, 80, 36, "c0", AUDIO),
        note(420, 24, f"depth decoder: {k} positions for every frame", 14),
        arrow(335, 275, 405, 360),
        box(410, 360, 70, 44, "h", TEXT),
        box(490, 360, 70, 44, "c0", AUDIO),
        box(570, 360, 70, 44, "c1", AUDIO),
        note(660, 386, "...", 16, "middle"),
        box(680, 360, 70, 44, f"c{k - 2}", AUDIO),
        box(410, 296, 340, 36, f"projection [{wide}, {narrow}], shared audio table", DEPTH),
        box(410, 220, 340, 50, f"depth decoder: {config.decoder.layers} layers, width {narrow}", DEPTH),
        box(490, 150, 260, 44, f"a head for each codebook\n[{k - 1}, {narrow}, {v}]", AUDIO),
        box(490, 84, 70, 36, "c1", AUDIO),
        box(570, 84, 70, 36, "c2", AUDIO),
        note(660, 106, "...", 16, "middle"),
        box(680, 84, 70, 36, f"c{k - 1}", AUDIO),
    ]
    for x in (445, 525, 605, 715):
        parts += [arrow(x, 360, x, 334), arrow(x, 296, x, 272)]
    for x in (525, 605, 715):
        parts += [arrow(x, 220, x, 196), arrow(x, 150, x, 122)]
    return svg(770, 424, *parts)


def frame_layout(codebooks: int) -> str:
    """Columns and positions of one turn, and which position predicts which frame."""
    cells = ["BOS", "[0]", "Hi", "EOS", "f0", "f1", "f2", "0"]
    parts = [note(16, 22, "a turn: text in the last column, then frames; the all-zero frame ends it", 14)]
    names = ["c0", "c1", "...", f"c{codebooks - 1}", "text"]
    for row, name in enumerate(names):
        parts.append(note(66, 64 + 30 * row, name, 12, "end"))
        for column, cell in enumerate(cells):
            is_text = column < 4
            filled = (name == "text") == is_text
            x, y = 76 + 76 * column, 44 + 30 * row
            if not filled:
                parts.append(f"<rect x='{x}' y='{y}' width='70' height='26' rx='3' fill='#eeeeee'/>")
                continue
            label = cell if is_text else ("0" if cell == "0" else f"{name}" if name != "..." else "...")
            parts.append(box(x, y, 70, 26, label, TEXT if is_text else AUDIO, 12))
    base = 44 + 30 * len(names) + 4
    for column in range(len(cells)):
        parts.append(note(111 + 76 * column, base + 16, f"p={column}", 11, "middle"))
    for column in range(3, 7):
        x = 111 + 76 * column
        parts.append(f"<path d='M{x} {base + 22}C{x} {base + 46} {x + 76} {base + 46} {x + 76} {base + 24}' ")
        parts.append(f"stroke='{LINE}' fill='none' marker-end='url(#arrow)'/>")
    parts.append(
        note(111 + 76 * 3, base + 62, "the state at p-1 predicts the frame at p; the last text position the first", 12)
    )
    return svg(700, base + 76, *parts)


def shares_of_work(config: CSMConfig, ratios: list[int]) -> str:
    """Training FLOPs of a full row by part of the model, for shares of frames that the depth decoder sees."""
    length, width = 2048, 430
    bars = []
    for ratio in ratios:
        flops = training_flops(config, Work(length, length**2, length, length // ratio))
        backbone = flops.backbone + flops.backbone_attention + flops.codebook0_head
        bars.append((ratio, backbone, flops.model - backbone))
    most = max(backbone + decoder for _, backbone, decoder in bars)
    parts = [note(16, 22, "training FLOPs of a row of 2048 frames", 14)]
    for i, (ratio, backbone, decoder) in enumerate(bars):
        y, first = 40 + 40 * i, width * backbone / most
        second = width * decoder / most
        parts += [
            note(76, y + 20, f"1/{ratio}", 13, "end"),
            f"<rect x='86' y='{y}' width='{first:.1f}' height='28' fill='{TEXT}'/>",
            f"<rect x='{86 + first:.1f}' y='{y}' width='{second:.1f}' height='28' fill='{DEPTH}'/>",
            note(92 + first + second, y + 19, f"{(backbone + decoder) / 1e12:.0f} TFLOP"),
        ]
    below = 40 + 40 * len(bars) + 14
    parts += [box(86, below, 14, 14, "", TEXT), note(106, below + 12, "backbone and codebook 0")]
    parts += [box(296, below, 14, 14, "", DEPTH), note(316, below + 12, "depth decoder, projection, heads")]
    return svg(640, below + 28, *parts)
