// A readable colour for every author, on the light page and on the dark one.

// The page's backgrounds (style.css: --page) and the contrast that WCAG 2 asks of small text.
export const BACKGROUNDS = { light: [255, 255, 255], dark: [21, 23, 28] };
export const CONTRAST = 4.5;
const STEPS = 20;
const MAX_REMEMBERED = 2000;

const remembered = new Map();

/** Return {light, dark}: CSS colours for a user, the chosen one as far as it can be read. */
export function authorColors({ id, color }) {
  const key = color ? `${id} ${color}` : id;
  let colors = remembered.get(key);
  if (!colors) {
    const wanted = parseHex(color) ?? fromHash(id);
    colors = {
      light: css(readable(wanted, BACKGROUNDS.light, [0, 0, 0])),
      dark: css(readable(wanted, BACKGROUNDS.dark, [255, 255, 255])),
    };
    if (remembered.size >= MAX_REMEMBERED) remembered.clear();
    remembered.set(key, colors);
  }
  return colors;
}

/** The nearest mix of `color` and `towards` that has enough contrast to the background. */
function readable(color, background, towards) {
  for (let step = 0; step <= STEPS; step++) {
    const part = step / STEPS;
    const mixed = color.map((value, index) =>
      Math.round(value + (towards[index] - value) * part),
    );
    if (contrast(mixed, background) >= CONTRAST) return mixed;
  }
  return towards;
}

/** WCAG 2 contrast ratio of two [red, green, blue] of 0 to 255. */
export function contrast(one, other) {
  const [darker, lighter] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (lighter + 0.05) / (darker + 0.05);
}

function luminance(color) {
  const [red, green, blue] = color.map((value) => {
    const part = value / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}

function parseHex(color) {
  if (!/^#([0-9a-f]{3}|[0-9a-f]{6})$/i.test(color ?? "")) return null;
  const digits = color.length === 4 ? color.slice(1).replace(/./g, "$&$&") : color.slice(1);
  return [0, 2, 4].map((at) => parseInt(digits.slice(at, at + 2), 16));
}

/** FNV-1a of the id picks a hue; neighbours in id are far apart in hue. */
function fromHash(id) {
  let hash = 0x811c9dc5;
  for (let index = 0; index < id.length; index++) {
    hash = Math.imul(hash ^ id.charCodeAt(index), 0x01000193);
  }
  hash = Math.imul(hash ^ (hash >>> 15), 0x2c1b3c6d);
  return fromHue((hash >>> 0) % 360, 0.62, 0.5);
}

function fromHue(hue, saturation, lightness) {
  const reach = saturation * Math.min(lightness, 1 - lightness);
  return [0, 8, 4].map((shift) => {
    const k = (shift + hue / 30) % 12;
    return 255 * (lightness - reach * Math.max(-1, Math.min(k - 3, 9 - k, 1)));
  });
}

function css(color) {
  return `rgb(${color.join(" ")})`;
}
