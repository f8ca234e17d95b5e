// Shows the zoom between keyframes that are painted, drawn by the browser: runtime/geometry.py, in_between.

const FADE_START = 0.5; // from here on the inner keyframe fades into the outer one's own copy of it
const FEATHER_FRACTION = 1 / 24;
const DETAIL = 2; // pixels drawn for each of the picture's, so that it moves smoothly

export class Camera {
  // `zoomRate` is by how much the view widens per second at most.
  constructor(canvas, zoomRate) {
    this._canvas = canvas;
    this._context = canvas.getContext("2d");
    this._zoomRate = zoomRate;
    this._scratch = document.createElement("canvas");
    this._still = matchMedia("(prefers-reduced-motion: reduce)");
    this.restart(1, 1);
    requestAnimationFrame((now) => this._tick(now));
  }

  // Forgets the keyframes; pictures will have this size.
  restart(width, height) {
    this._keyframes = []; // of which the camera is between the first and the second
    this._progress = 0;
    this._paintingSeconds = null;
    for (const canvas of [this._canvas, this._scratch]) {
      canvas.width = DETAIL * width;
      canvas.height = DETAIL * height;
    }
  }

  // The next keyframe; the one before appears shrunk by `scale` in it. `seconds`: what it took to paint.
  add(picture, scale, seconds) {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [picture.width, picture.height];
    canvas.getContext("2d").putImageData(imageData(picture), 0, 0);
    this._keyframes.push({ canvas, scale });
    this._paintingSeconds = seconds;
    if (this._still.matches) this._keyframes.splice(0, this._keyframes.length - 1);
    this._draw();
  }

  // Keyframes that the camera has not reached.
  get ahead() {
    return this._keyframes.length - 1 - this._progress;
  }

  _tick(now) {
    const seconds = Math.min((now - (this._before ?? now)) / 1000, 0.1);
    this._before = now;
    if (this._keyframes.length > 1) {
      const natural = Math.log(this._zoomRate) / -Math.log(this._keyframes[1].scale);
      const keyframesPerSecond = this._paintingSeconds ? Math.min(natural, 1 / this._paintingSeconds) : natural;
      this._progress += keyframesPerSecond * seconds;
      if (this._progress >= 1) {
        this._keyframes.shift();
        this._progress = this._keyframes.length > 1 ? this._progress - 1 : 0;
      }
      this._draw();
    }
    requestAnimationFrame((later) => this._tick(later));
  }

  _draw() {
    const [inner, outer] = this._keyframes;
    if (outer === undefined || this._progress === 0) {
      this._place(this._context, inner.canvas, 1);
      return;
    }
    const scale = outer.scale;
    const t = this._progress;
    this._place(this._context, outer.canvas, scale ** (t - 1));
    const faded = Math.min(Math.max((t - FADE_START) / (1 - FADE_START), 0), 1);
    this._context.globalAlpha = 1 - faded * faded * (3 - 2 * faded);
    this._context.drawImage(this._feathered(inner.canvas, scale ** t, t), 0, 0);
    this._context.globalAlpha = 1;
  }

  // The canvas in the centre, `scale` times as large as the view.
  _place(context, canvas, scale) {
    const { width, height } = context.canvas;
    context.imageSmoothingQuality = "high";
    context.drawImage(canvas, (width * (1 - scale)) / 2, (height * (1 - scale)) / 2, width * scale, height * scale);
  }

  // The same, fading out towards its edges.
  _feathered(canvas, scale, t) {
    const context = this._scratch.getContext("2d");
    const { width, height } = this._scratch;
    context.globalCompositeOperation = "source-over";
    context.clearRect(0, 0, width, height);
    this._place(context, canvas, scale);
    context.globalCompositeOperation = "destination-in";
    for (const [length, toX, toY] of [
      [width, 1, 0],
      [height, 0, 1],
    ]) {
      const edge = (length * (1 - scale)) / 2;
      const feather = Math.max(Math.min(width, height) * FEATHER_FRACTION * t, 1e-3) / (length - 2 * edge);
      const gradient = context.createLinearGradient(
        edge * toX,
        edge * toY,
        (length - edge) * toX,
        (length - edge) * toY,
      );
      for (const [place, alpha] of [
        [0, 0],
        [feather, 1],
        [1 - feather, 1],
        [1, 0],
      ]) {
        gradient.addColorStop(place, `rgba(0, 0, 0, ${alpha})`);
      }
      context.fillStyle = gradient;
      context.fillRect(0, 0, width, height);
    }
    return this._scratch;
  }
}

function imageData({ width, height, data }) {
  const image = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    image.data.set(data.subarray(3 * i, 3 * i + 3), 4 * i);
    image.data[4 * i + 3] = 255;
  }
  return image;
}
