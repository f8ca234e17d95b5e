// What a person can meet: what happened, and what to do.

export class Problem extends Error {
  constructor(message, hint = "") {
    super(message);
    this.hint = hint;
  }
}

const OUT_OF_MEMORY =
  /out of memory|bad_alloc|allocation failed|Aborted\(OOM|could not allocate|Cannot enlarge memory/i;

// A problem for whatever was thrown while something was done.
export function explained(error, doing) {
  if (error instanceof Problem) return error;
  const text = error instanceof Error ? error.message : String(error);
  if (error instanceof RangeError || OUT_OF_MEMORY.test(text)) {
    return new Problem(
      `the browser has not enough memory for ${doing}: ${text}`,
      "close other tabs, or build the bundle with a recipe of fewer bits (int8, int4) or a smaller --size",
    );
  }
  return new Problem(`${doing} failed: ${text}`, "reload the page; if it happens again, please report it");
}
