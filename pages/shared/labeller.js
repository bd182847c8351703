// Shows the first image of a queue, and takes a key for it. The next image is there at once: the
// queue is long, and its images are loaded ahead. An answer is sent until the page says that it is
// kept, also after a reload. Text is set, never HTML.
const KEYS = "123456789abcdefghijklmnopqrstuvwxyz"
const AGAIN_AFTER = 5000 // milliseconds without an answer of the server
const ASK_AFTER = 500 // milliseconds until the rest of a queue is asked for
const TYPED_IN = "input, textarea, select, [contenteditable=true], [role=dialog] *"
const MOVED_IN = "[role=tab], [role=radio], [role=slider]" // by the arrow keys
const PREPARED = "The next images are being prepared."
const NONE = "No image waits for a label."
const MOST_HELD = 250, MOST_UNDONE = 100 // images

const make = (kind, name, text = "") => {
  const made = document.createElement(kind)
  made.className = name
  made.textContent = text
  return made
}

class Labeller {
  constructor(parent) {
    for (const part of ["picture", "proposal", "classes", "others", "state"])
      this[part] = parent.querySelector("." + part)
    this.token = crypto.randomUUID?.() ?? String(Math.random()) // http has no randomUUID
    this.count = 0 // answers given so far
    this.unkept = [] // answers that are not known to be kept
    this.sent = 0 // messages
    this.sentAt = 0
    this.shown = null
    this.rest = [] // images that follow
    this.history = [] // images that were answered, to be undone
    this.elements = new Map() // id -> its <img>
    this.others.append(
      this.button("→", "Skip", () => this.answer("skip")),
      this.button("0", "None of these", () => this.answer("none")),
      (this.back = this.button("⌫", "Undo", () => this.undo())),
      this.button("", "More like this", () => this.shown && this.like(this.shown.id)),
    )
    this.onkey = event => this.key(event)
    window.addEventListener("keydown", this.onkey, true)
    this.clock = setInterval(() => this.pump(), 1000)
  }

  update({ data, setStateValue, setTriggerValue }) {
    const first = !this.data
    const reset = !first && data.order !== this.data.order
    this.data = data
    // numbered: an equal value would not count as changed, and not be answered
    const { token } = this
    this.send = answers =>
      setStateValue("answers", { token, sent: ++this.sent, answers: [...answers] })
    this.like = id => setTriggerValue("like", id)
    this.store = "thaw-labels-" + data.data
    if (first) this.restore()
    if (data.token === this.token) {
      this.unkept = this.unkept.filter(answer => answer.number > data.answered)
      if (!data.problem) this.sentAt = 0
    }
    this.remember()
    this.take(data.images, reset)
    // a field, or the choice of the view, that keeps the focus would take the keys
    if (this.drawClasses() || reset || first) this.picture.focus({ preventScroll: true })
    this.draw()
    this.pump()
    clearTimeout(this.later)
    if (data.more) this.later = setTimeout(() => setTriggerValue("more", Date.now()), ASK_AFTER)
  }

  // The image on show stays. The others follow in the order of the server; those that it does not
  // send any more come last.
  take(images, reset) {
    const answered = new Set()
    for (const { action, path } of this.unkept)
      action === "undo" ? answered.delete(path) : answered.add(path)
    if (reset) this.shown = null
    const fresh = images.filter(image => !answered.has(image.id) && image.id !== this.shown?.id)
    const ids = new Set(fresh.map(image => image.id))
    const held = reset ? [] : this.rest.filter(image => !ids.has(image.id))
    this.rest = [...fresh, ...held].slice(0, MOST_HELD)
    this.shown ??= this.rest.shift() ?? null
    const wanted = [this.shown, ...this.rest, ...this.history].filter(Boolean)
    const before = this.elements
    this.elements = new Map(wanted.map(image => [image.id, this.load(image, before.get(image.id))]))
  }

  load(image, element) {
    if (element && !(element.complete && !element.naturalWidth)) return element
    const made = element ?? new Image()
    made.onload = made.onerror = () => made.isConnected && this.draw()
    made.alt = image.alt
    made.src = image.src
    return made
  }

  restore() {
    const kept = JSON.parse(sessionStorage.getItem(this.store) ?? "[]")
    this.unkept = kept.map(answer => ({ ...answer, number: ++this.count }))
  }

  remember() {
    sessionStorage.setItem(this.store, JSON.stringify(this.unkept))
  }

  get visible() {
    return !!this.shown && this.elements.get(this.shown.id).naturalWidth > 0
  }

  answer(action, label = "") {
    // nobody has seen what is not loaded
    if (!this.shown || (!this.visible && action !== "skip")) return
    const image = this.shown
    this.history = [...this.history, image].slice(-MOST_UNDONE)
    this.shown = this.rest.shift() ?? null
    this.give({ action, label, path: image.id })
  }

  undo() {
    const image = this.history.pop()
    if (!image) return
    if (this.shown) this.rest.unshift(this.shown)
    this.rest = this.rest.filter(other => other.id !== image.id)
    this.shown = image
    this.give({ action: "undo", label: "", path: image.id })
  }

  give(answer) {
    this.unkept.push({ ...answer, number: ++this.count })
    this.remember()
    this.draw()
    this.pump()
  }

  pump() {
    const awaited = this.sentAt && performance.now() - this.sentAt < AGAIN_AFTER
    if (!this.unkept.length || !this.send || awaited) return
    this.sentAt = performance.now()
    this.send(this.unkept)
  }

  key(event) {
    const aim = event.composedPath()[0]
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || !this.data) return
    if (aim.matches?.(TYPED_IN)) return
    const name = event.key.toLowerCase()
    const at = name.length === 1 ? KEYS.indexOf(name) : -1
    if (at >= 0 && at < this.data.classes.length) this.answer("label", this.data.classes[at])
    else if (name === "0") this.answer("none")
    else if (event.key === "ArrowRight" && !aim.matches?.(MOVED_IN)) this.answer("skip")
    else if (event.key === "Backspace") this.undo()
    else return
    event.preventDefault()
    event.stopImmediatePropagation() // letters are commands of Streamlit, too
  }

  // Buttons stay from one image to the next: one that is made anew would lose the focus. Returns
  // whether classes have changed.
  drawClasses() {
    const names = JSON.stringify(this.data.classes)
    if (names === this.names) return false
    const first = !this.names
    this.names = names
    const made = (name, at) => this.button(KEYS[at], name, () => this.answer("label", name))
    this.classes.replaceChildren(...this.data.classes.map(made))
    return !first
  }

  draw() {
    const image = this.shown
    const element = image && this.elements.get(image.id)
    if (element !== this.picture.firstElementChild) this.picture.replaceChildren(element ?? "")
    const broken = element?.complete && !element.naturalWidth
    if (broken) this.proposal.textContent = "This image could not be loaded: skip it."
    else if (image) this.proposal.textContent = image.note
    else this.proposal.textContent = this.data.more ? PREPARED : NONE
    const { classes } = this.data
    const buttons = [...this.classes.children]
    buttons.forEach((one, at) => one.classList.toggle("first", classes[at] === image?.proposal))
    for (const button of [...buttons, ...this.others.children]) button.disabled = !image
    this.back.disabled = !this.history.length
    const waiting = this.unkept.length
    this.state.textContent = waiting > 3 ? `Saving ${waiting} answers …` : ""
  }

  button(key, text, act) {
    const made = make("button", "")
    made.type = "button"
    if (key) made.append(make("kbd", "", key))
    made.append(make("span", "", text))
    made.onclick = act
    return made
  }

  close() {
    window.removeEventListener("keydown", this.onkey, true)
    clearInterval(this.clock)
    clearTimeout(this.later)
  }
}

const labellers = new WeakMap()

export default function (component) {
  const parent = component.parentElement
  if (!labellers.has(parent)) labellers.set(parent, new Labeller(parent))
  labellers.get(parent).update(component)
  return () => {
    labellers.get(parent)?.close()
    labellers.delete(parent)
  }
}
