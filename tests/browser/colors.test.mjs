// web/colors.js: every name can be read on both pages.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";

import { authorColors, BACKGROUNDS, CONTRAST, contrast } from "../../web/colors.js";

const parse = (css) => css.match(/\d+/g).map(Number);

function assertReadable(user) {
  const colors = authorColors(user);
  for (const scheme of ["light", "dark"]) {
    const ratio = contrast(parse(colors[scheme]), BACKGROUNDS[scheme]);
    assert.ok(ratio >= CONTRAST, `${JSON.stringify(user)} in ${scheme}: ${ratio.toFixed(2)}`);
  }
}

test("colours by hash", () => {
  for (let index = 0; index < 1000; index++) assertReadable({ id: `u${index}` });
});

test("chosen colours, those of the page among them", () => {
  for (const color of ["#fff", "#ffffff", "#000", "#15171c", "#0000ff", "#FF0", "#00ff7f"]) {
    assertReadable({ id: "u", color });
  }
});

test("a chosen colour that can be read stays as it is", () => {
  assert.equal(authorColors({ id: "u", color: "#b93a17" }).light, "rgb(185 58 23)");
});

test("what is no hex colour is as good as none", () => {
  const plain = authorColors({ id: "u" });
  for (const color of ["red", "#12345", "rgb(0 0 0)", "url(x)", "#fff;x"]) {
    assert.deepEqual(authorColors({ id: "u", color }), plain);
  }
});

test("neighbours in id differ", () => {
  const hues = new Set(Array.from({ length: 50 }, (_, i) => authorColors({ id: `u${i}` }).light));
  assert.ok(hues.size > 35, `${hues.size} colours for 50 authors`);
});

test("the backgrounds are those of style.css", () => {
  const pages = readFileSync(new URL("../../web/style.css", import.meta.url), "utf8")
    .match(/--page: #\w{6}/g)
    .map((line) => [1, 3, 5].map((at) => parseInt(line.split("#")[1].slice(at - 1, at + 1), 16)));
  assert.deepEqual(pages, [BACKGROUNDS.light, BACKGROUNDS.dark]);
});
