"""The script of a page sorts as it says, in Node with as much of a document as it asks for."""

import json
import shutil
import subprocess

import pytest

from odesampler.analysis import page

NODE = shutil.which("node")
DOCUMENT = """
const made = () => ({ append(...parts) { this.parts = parts; }, addEventListener(_, f) { this.click = f; } });
const cell = { ...made(), childNodes: ["n"], cellIndex: 0, seen: {} };
cell.append = (button) => { cell.button = button; button.parentElement = cell; };
cell.getAttribute = (name) => cell.seen[name];
cell.setAttribute = (name, value) => { cell.seen[name] = value; };
cell.removeAttribute = (name) => { delete cell.seen[name]; };
cell.parentElement = { cells: [cell] };
const row = (rank, i) => ({ i, cells: [{ dataset: rank === null ? {} : { rank } }] });
const body = { rows: RANKS.map(row), replaceChildren(...rows) { this.rows = rows; } };
cell.closest = () => ({ tBodies: [body] });
const knob = made();
globalThis.document = {
  querySelectorAll: (chosen) => (chosen.includes("[data-sortable]") ? [cell] : []), createElement: made,
  getElementById: () => knob, documentElement: { dataset: {} },
};
globalThis.matchMedia = () => ({ matches: false });
"""
CLICKS = """
const found = [];
for (let i = 0; i < 3; i++) { cell.button.click(); found.push([cell.seen["aria-sort"], body.rows.map((r) => r.i)]); }
knob.click();
found.push([cell.button.type, cell.button.parts, document.documentElement.dataset.theme]);
console.log(JSON.stringify(found));
"""


@pytest.mark.skipif(NODE is None, reason="node is not installed")
def test_a_click_sorts_up_another_down_and_what_is_not_known_stays_last():
    ranks = ["2", None, "10", "1", "2"]  # as numbers: 10 is above 2
    script = f"const RANKS = {json.dumps(ranks)};\n{DOCUMENT}\n{page._resource('page.js')}\n{CLICKS}"
    done = subprocess.run([NODE, "-"], input=script, capture_output=True, text=True, check=True, timeout=60)
    up, down = ["ascending", [3, 0, 4, 2, 1]], ["descending", [2, 0, 4, 3, 1]]  # equal ones keep their order
    assert json.loads(done.stdout) == [up, down, up, ["button", ["n"], "dark"]]
