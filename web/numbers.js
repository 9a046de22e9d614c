// Numbers as people read them at a glance.

const SHORT = Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const FULL = Intl.NumberFormat("en");
const SHORT_FROM = 10_000;

/** 9,999 in full, 15.2k and 1.3M above. */
export function compact(count) {
  return count < SHORT_FROM ? FULL.format(count) : SHORT.format(count).replace("K", "k");
}

/** Seconds as a countdown shows them: 45 s, 2:05, 1:00:00. */
export function countdown(seconds) {
  if (seconds < 100) return `${seconds} s`;
  const parts = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60];
  if (parts[0] === 0) parts.shift();
  return parts.map((part, index) => (index ? String(part).padStart(2, "0") : part)).join(":");
}
