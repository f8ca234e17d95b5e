// CLIP's tokenizer, from tokenizer.json or from vocab.json and merges.txt: what runtime/tokenizer.py gets from the
// package tokenizers.

import { Problem } from "./errors.mjs";

const START = "<|startoftext|>";
const END = "<|endoftext|>";
const END_OF_WORD = "</w>";
const SPACES = /\p{White_Space}+/gu;
const WORDS = /'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\p{White_Space}\p{L}\p{N}]+/gu;

export class ClipTokenizer {
  // `files` are the texts of the tokenizer's files, by name.
  constructor(files, maxTokens) {
    this.maxTokens = maxTokens;
    try {
      const { vocabulary, merges, special } = parsed(files);
      this._vocabulary = vocabulary;
      this._ranks = new Map(merges.map((pair, rank) => [pair, rank]));
      this._special = [...special].sort((a, b) => b.length - a.length);
      [this._start, this._end, this._pad] = [START, END, paddingToken(files)].map((token) => {
        if (!vocabulary.has(token)) throw new Error(`it has no token '${token}'`);
        return vocabulary.get(token);
      });
    } catch (error) {
      throw new Problem(`the bundle's tokenizer can't be read: ${error.message}`, "build the bundle again");
    }
    this._words = new Map();
  }

  // How many tokens a prompt has, without the two that mark its start and end.
  count(prompt) {
    return this._ids(prompt).length;
  }

  // maxTokens ids: start, the prompt (cut if it is too long), end, padding.
  encode(prompt) {
    const ids = [this._start, ...this._ids(prompt).slice(0, this.maxTokens - 2), this._end];
    return [...ids, ...Array(this.maxTokens - ids.length).fill(this._pad)];
  }

  _ids(prompt) {
    const ids = [];
    for (const part of this._split(prompt)) {
      if (typeof part === "number") {
        ids.push(part);
        continue;
      }
      const words = lowercase(part.normalize("NFC").replace(SPACES, " ")).match(WORDS) ?? [];
      for (const word of words) ids.push(...this._wordIds(word));
    }
    return ids;
  }

  // The text between special tokens, and their ids.
  *_split(text) {
    let begin = 0;
    for (let at = 0; at < text.length;) {
      const token = this._special.find((one) => text.startsWith(one, at));
      if (token === undefined) {
        at += 1;
        continue;
      }
      if (at > begin) yield text.slice(begin, at);
      yield this._vocabulary.get(token);
      at += token.length;
      begin = at;
    }
    if (begin < text.length) yield text.slice(begin);
  }

  // Byte-pair encoding: of all neighbours, the pair that was merged first in training is merged first.
  _wordIds(word) {
    const known = this._words.get(word);
    if (known !== undefined) return known;
    const parts = Array.from(new TextEncoder().encode(word), (byte) => BYTES[byte]);
    parts[parts.length - 1] += END_OF_WORD;
    for (;;) {
      let best = -1;
      let bestRank = Infinity;
      for (let i = 0; i + 1 < parts.length; i++) {
        const rank = this._ranks.get(`${parts[i]} ${parts[i + 1]}`) ?? Infinity;
        if (rank < bestRank) [best, bestRank] = [i, rank];
      }
      if (best < 0) break;
      parts.splice(best, 2, parts[best] + parts[best + 1]);
    }
    const ids = parts.map((part) => this._vocabulary.get(part) ?? this._end);
    this._words.set(word, ids);
    return ids;
  }
}

function parsed(files) {
  if (files["tokenizer.json"] !== undefined) {
    const { model, added_tokens: added } = JSON.parse(files["tokenizer.json"]);
    const vocabulary = new Map(Object.entries(model.vocab));
    for (const token of added) vocabulary.set(token.content, token.id);
    const merges = model.merges.map((pair) => (typeof pair === "string" ? pair : pair.join(" ")));
    return { vocabulary, merges, special: added.map((token) => token.content) };
  }
  if (files["vocab.json"] === undefined || files["merges.txt"] === undefined) throw new Error("its files are missing");
  const vocabulary = new Map(Object.entries(JSON.parse(files["vocab.json"])));
  const lines = files["merges.txt"].split("\n").filter((line) => line.trim() !== "" && !line.startsWith("#version"));
  const special = [START, END, paddingToken(files)].filter((token) => vocabulary.has(token));
  return { vocabulary, merges: lines.map((line) => line.trimEnd()), special: new Set(special) };
}

function paddingToken(files) {
  for (const name of ["tokenizer_config.json", "special_tokens_map.json"]) {
    if (files[name] === undefined) continue;
    const token = JSON.parse(files[name]).pad_token;
    if (token) return String(token.content ?? token);
  }
  return END;
}

// Each character by itself, so that a sigma at the end of a word is like any other.
const lowercase = (text) => Array.from(text, (character) => character.toLowerCase()).join("");

// How GPT-2 writes bytes as characters: those that can be printed as they are, the others from U+0100 on.
const BYTES = (() => {
  const printable = (byte) => (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
  let next = 0x100;
  return Array.from({ length: 256 }, (_, byte) => String.fromCodePoint(printable(byte) ? byte : next++));
})();
