// A camera with two uses. "record": frames are taken while the button is held, and sent a few at a time. "live": one frame is sent as
// soon as the answer to the last one is back. Text is set, never HTML.
const SHORT_SIDE = 320, QUALITY = 0.9
const EVERY = 125 // milliseconds between frames that are recorded
const LIVE_EVERY = 100 // milliseconds between frames that are classified, at least
const AT_A_TIME = 6, MOST_AT_A_TIME = 16, MOST_WAITING = 120 // frames
const GIVE_WAY = 2000 // milliseconds: a press elsewhere on the page, and what it leads to, must not compete with frames
const AGAIN_AFTER = 5000 // milliseconds without an answer
const SHOWN = 8 // thumbnails
const PROBLEMS = {
  NotAllowedError: "The browser did not allow the camera. Allow it for this page (an icon in the address bar), then turn it on again.",
  NotFoundError: "There is no camera on this device. Connect one, then turn it on again.",
  NotReadableError: "The camera could not be opened: another program may be using it. Close that, then turn it on again.",
}
const NOT_SECURE =
  "A browser gives its camera only to localhost and https. Open Thaw as http://localhost on the machine that it runs on, or put it behind https."

const PRESSES = ["pointerdown", "keydown"]
const left = [] // frames that a camera had not sent when its page was left; the next one sends them

const id = () => Date.now().toString(36) + Math.random().toString(36).slice(2, 8)

class Camera {
  constructor(parent) {
    for (const part of ["video", "problem", "hold", "turn", "say", "rate", "strip"]) this[part] = parent.querySelector("." + part)
    this.canvas = document.createElement("canvas")
    this.waiting = [] // frames that are still to be sent
    this.sent = null // what has not been answered
    this.sending = [] // the frames in it, where they are to be kept
    this.unstored = false // the disk could not take it
    this.answers = [] // when the last ones arrived
    this.free = 0 // when frames may be sent again
    this.taking = 0 // frames that are being encoded
    this.turn.onclick = () => (this.stream || this.opening ? this.off() : this.on())
    this.hold.onpointerdown = event => {
      if (event.button) return
      this.hold.setPointerCapture(event.pointerId)
      this.press()
    }
    this.hold.onpointerup = this.hold.onpointercancel = this.hold.onlostpointercapture = this.hold.onblur = () => this.release()
    this.hold.oncontextmenu = event => event.preventDefault() // a finger that rests on it
    this.hold.onkeydown = event => {
      if (event.key !== " " && event.key !== "Enter") return
      event.preventDefault()
      if (!event.repeat) this.press()
    }
    this.hold.onkeyup = event => {
      if (event.key === " " || event.key === "Enter") this.release()
    }
    this.onhidden = () => {
      if (document.hidden && this.stream) {
        this.off()
        this.again = true
      } else if (!document.hidden && this.again) this.on()
    }
    document.addEventListener("visibilitychange", this.onhidden)
    this.onleave = event => this.pending && event.preventDefault()
    window.addEventListener("beforeunload", this.onleave)
    this.onpress = event => {
      if (!event.composedPath().includes(parent)) this.free = performance.now() + GIVE_WAY
    }
    for (const kind of PRESSES) document.addEventListener(kind, this.onpress, true)
    this.clock = setInterval(() => this.tick(), 1000)
    if (!navigator.mediaDevices?.getUserMedia) {
      this.fail(NOT_SECURE)
      this.turn.disabled = true
    }
  }

  update({ data, setTriggerValue }) {
    this.data = data
    this.send = setTriggerValue
    if (!this.live && left.length) this.waiting = left.splice(0)
    this.unstored = !!this.sent && data.unstored === this.sent.id
    if (this.unstored) this.release()
    if (this.sent && data.answered === this.sent.id) {
      this.sent = null
      this.sending = []
      this.answers.push(performance.now())
      if (this.live) this.lookLater(Math.max(0, LIVE_EVERY - (performance.now() - this.looked)))
    }
    this.pump()
    this.draw()
  }

  get pending() {
    return this.waiting.length + this.sending.length
  }

  get live() {
    return this.data?.mode === "live"
  }

  async on() {
    this.again = false
    this.fail("")
    const opening = (this.opening = {})
    this.draw()
    try {
      const stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: 640 }, audio: false })
      if (this.opening !== opening) return stream.getTracks().forEach(track => track.stop()) // turned off meanwhile
      this.stream = stream
      stream.getVideoTracks()[0].onended = () => this.off()
      this.video.srcObject = stream
      await this.video.play()
    } catch (error) {
      if (this.opening !== opening) return
      this.off()
      this.fail(PROBLEMS[error.name] ?? `The camera could not be opened (${error.name}).`)
    }
    if (this.opening === opening) this.opening = null
    this.draw()
    if (this.live && this.stream) this.look()
  }

  off() {
    this.release()
    this.again = false
    this.opening = null
    clearTimeout(this.later)
    this.stream?.getTracks().forEach(track => track.stop())
    this.stream = this.video.srcObject = null
    this.answers = []
    if (this.live) this.sent = null // frames that are to be kept are still sent
    this.draw()
  }

  close() {
    this.off()
    this.closed = true
    left.push(...this.sending, ...this.waiting)
    clearInterval(this.clock)
    document.removeEventListener("visibilitychange", this.onhidden)
    window.removeEventListener("beforeunload", this.onleave)
    for (const kind of PRESSES) document.removeEventListener(kind, this.onpress, true)
  }

  fail(words) {
    this.problem.textContent = words
    this.problem.hidden = !words
  }

  // A JPEG in base64, its shorter side at most SHORT_SIDE pixels; null before the camera has a picture.
  take() {
    const { videoWidth: width, videoHeight: height } = this.video
    if (!this.stream || !width) return Promise.resolve(null)
    const scale = Math.min(1, SHORT_SIDE / Math.min(width, height))
    this.canvas.width = Math.round(width * scale)
    this.canvas.height = Math.round(height * scale)
    this.canvas.getContext("2d").drawImage(this.video, 0, 0, this.canvas.width, this.canvas.height)
    return new Promise(resolve =>
      this.canvas.toBlob(
        blob => {
          if (!blob) return resolve(null)
          const reader = new FileReader()
          reader.onload = () => resolve(reader.result)
          reader.onerror = () => resolve(null)
          reader.readAsDataURL(blob)
        },
        "image/jpeg",
        QUALITY,
      ),
    )
  }

  lookLater(milliseconds) {
    clearTimeout(this.later)
    this.later = setTimeout(() => this.look(), milliseconds)
  }

  async look() {
    if (!this.stream || this.sent) return
    this.looked = performance.now()
    if (this.looked < this.free) return this.lookLater(this.free - this.looked)
    const picture = await this.take()
    if (!this.stream || this.sent) return
    if (!picture) this.lookLater(LIVE_EVERY)
    else this.deliver({ id: id(), frames: [picture.split(",")[1]] })
  }

  press() {
    if (this.holding || !this.stream || this.hold.disabled) return
    this.holding = { press: id(), count: 0, recording: this.data.recording, class: this.data.class_name }
    this.strip.replaceChildren()
    this.say.textContent = `Recording ${this.holding.class}`
    this.record()
    this.beat = setInterval(() => this.record(), EVERY)
    this.draw()
  }

  release() {
    const holding = this.holding
    if (!holding) return
    clearInterval(this.beat)
    this.holding = null
    if (!this.taking) this.sum(holding)
    this.pump()
    this.draw()
  }

  sum({ count, class: name }) {
    if (!this.holding) this.say.textContent = `${name}: ${count} ${count === 1 ? "frame" : "frames"} recorded`
  }

  async record() {
    const holding = this.holding
    if (!holding || this.taking || this.waiting.length >= MOST_WAITING) return
    this.taking += 1
    const picture = await this.take()
    this.taking -= 1
    if (picture) {
      const frames = this.closed ? left : this.waiting
      frames.push({ ...holding, number: holding.count, content: picture.split(",")[1] })
      holding.count += 1
      this.thumbnail(picture, holding.count)
    }
    if (this.holding !== holding) this.sum(holding)
    this.pump()
    this.draw()
  }

  thumbnail(picture, number) {
    const image = document.createElement("img")
    image.src = picture
    image.alt = `Frame ${number}`
    this.strip.append(image)
    if (this.strip.children.length > SHOWN) this.strip.firstElementChild.remove()
  }

  pump() {
    if (this.sent || !this.waiting.length || (this.holding && this.waiting.length < AT_A_TIME) || performance.now() < this.free) return
    const first = this.waiting[0]
    const other = this.waiting.findIndex(one => one.press !== first.press)
    const some = this.waiting.splice(0, Math.min(MOST_AT_A_TIME, other < 0 ? MOST_AT_A_TIME : other))
    const { press, recording } = first
    this.sending = some
    this.deliver({ id: id(), press, first: first.number, recording, class: first.class, frames: some.map(one => one.content) })
  }

  deliver(batch) {
    this.sent = batch
    this.sentAt = performance.now()
    this.send("frames", batch)
  }

  tick() {
    if (this.sent && performance.now() - this.sentAt > AGAIN_AFTER) this.deliver(this.sent)
    this.pump()
    this.draw()
  }

  draw() {
    if (!this.data) return
    const on = !!this.stream, name = this.data.class_name
    this.video.hidden = !on
    this.turn.textContent = on || this.opening ? "Turn the camera off" : "Turn on the camera"
    this.turn.classList.toggle("first", !on && !this.data.ready)
    this.hold.hidden = this.live || !on
    this.hold.disabled = !this.holding && (!name || this.unstored) // one that is disabled while it is held would not hear of its release
    this.hold.setAttribute("aria-pressed", String(!!this.holding))
    this.hold.textContent = this.holding ? `Recording: ${this.holding.count}` : name ? `Hold to record ${name}` : "Name a class first"
    if (!this.live) {
      const { pending } = this
      const words = pending === 1 ? "1 frame is still to be stored" : `${pending} frames are still to be stored`
      this.rate.textContent = pending > (this.holding ? AT_A_TIME * 2 : 0) ? words : ""
      return
    }
    const now = performance.now()
    this.answers = this.answers.filter(time => now - time < 3000)
    const [first] = this.answers, count = this.answers.length - 1
    this.rate.textContent = !on ? "" : count > 0 ? `${((count * 1000) / (now - first)).toFixed(1)} predictions per second` : "Waiting for a prediction"
  }
}

const mounted = new WeakMap()

export default function (component) {
  const parent = component.parentElement
  if (!mounted.has(parent)) mounted.set(parent, new Camera(parent))
  const camera = mounted.get(parent)
  camera.update(component)
  return () => {
    camera.close()
    mounted.delete(parent)
  }
}
