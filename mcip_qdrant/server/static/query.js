// What is searched for: words, pictures with weights, or images of the collection. Knows nothing of the page.

import { dataUrl, Problem } from "./api.js";

const MAX_FILE_MB = 20;
const MOST_PARTS = 16; // that the server mixes
const MOST_MB = 25; // of files: a third more in base64, which the server's 32 MiB for a request hold

// A name to be shown: signs that turn the text around them become visible.
export const visible = (name) => name.replace(/[\p{Cc}\u202a-\u202e\u2066-\u2069]/gu, "\ufffd");

// Whether something dragged or pasted is pictures: programs add one of the text that is copied, and that is meant as text.
export const bringsPictures = ({ types }) => types.includes("Files") && !types.includes("text/plain");

export class Query {
  words = "";
  wordsWeight = 1;
  pictures = []; // { file, weight }
  like = null; // { id, name, thumbnail }

  get empty() {
    return !this.words.trim() && this.pictures.length === 0 && this.like === null;
  }

  get mixed() {
    return this.pictures.length + (this.words.trim() ? 1 : 0) > 1;
  }

  // Mixes the pictures among some files in.
  add(files) {
    const pictures = [...files].filter((file) => file.type.startsWith("image/"));
    if (!pictures.length) throw new Problem("That is not a picture.", 400);
    const large = pictures.find((file) => file.size > MAX_FILE_MB * 1e6);
    if (large) throw new Problem(`${visible(large.name)} is larger than ${MAX_FILE_MB} MB.`, 413);
    this.like = null;
    this.pictures.push(...pictures.map((file) => ({ file, weight: 1 })));
  }

  // All of it as it is now, for `restore`.
  snapshot() {
    const { words, wordsWeight, pictures, like } = this;
    return { words, wordsWeight, like, pictures: pictures.map((picture) => ({ ...picture })) };
  }

  restore(snapshot) {
    Object.assign(this, snapshot, { pictures: snapshot.pictures.map((picture) => ({ ...picture })) });
  }

  hasPicturesOf(snapshot) {
    const files = snapshot?.pictures ?? [];
    return files.length === this.pictures.length && files.every(({ file }, index) => file === this.pictures[index].file);
  }

  // What /v1/search takes.
  async body() {
    if (this.like) return { like: this.like.id };
    this.#check();
    const words = this.words.trim();
    const urls = await Promise.all(this.pictures.map(({ file }) => dataUrl(file)));
    // What is alone has no slider, so a weight from when it was not must not count.
    if (!this.mixed) return words ? { text: words } : { image: urls[0] };
    const mix = urls.map((image, index) => ({ image, weight: this.pictures[index].weight }));
    if (words) mix.unshift({ text: words, weight: this.wordsWeight });
    return { mix };
  }

  #check() {
    const parts = this.pictures.length + (this.words.trim() ? 1 : 0);
    if (parts > MOST_PARTS) throw new Problem(`A mix takes at most ${MOST_PARTS} pictures, words count as one; these are ${parts}.`, 413);
    const bytes = this.pictures.reduce((sum, { file }) => sum + file.size, 0);
    if (bytes > MOST_MB * 1e6) throw new Problem(`The pictures of a mix may have ${MOST_MB} MB together; these have ${Math.ceil(bytes / 1e6)} MB.`, 413);
  }

  // What the status line calls it.
  get name() {
    if (this.like) return `images like \u2068${visible(this.like.name)}\u2069`;
    const pictures = this.pictures.length === 1 ? "your picture" : `${this.pictures.length} pictures`;
    const words = `“${visible(this.words.trim())}”`;
    if (!this.pictures.length) return words;
    return this.words.trim() ? `${words} mixed with ${pictures}` : pictures;
  }
}
