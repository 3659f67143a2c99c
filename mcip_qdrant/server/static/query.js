// What is searched for: words, pictures with weights, or images of the collection. Knows nothing of the page.

import { dataUrl } from "./api.js";

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

  // What /v1/search takes.
  async body() {
    if (this.like) return { like: this.like.id };
    const words = this.words.trim();
    const urls = await Promise.all(this.pictures.map(({ file }) => dataUrl(file)));
    if (!this.mixed && this.pictures.every(({ weight }) => weight === 1)) {
      return words ? { text: words } : { image: urls[0] };
    }
    const mix = urls.map((image, index) => ({ image, weight: this.pictures[index].weight }));
    if (words) mix.unshift({ text: words, weight: this.pictures.length ? this.wordsWeight : 1 });
    return { mix };
  }

  // What the status line calls it.
  get name() {
    if (this.like) return `images like ${this.like.name}`;
    const pictures = this.pictures.length === 1 ? "your picture" : `${this.pictures.length} pictures`;
    if (!this.pictures.length) return `“${this.words.trim()}”`;
    return this.words.trim() ? `“${this.words.trim()}” mixed with ${pictures}` : pictures;
  }
}
