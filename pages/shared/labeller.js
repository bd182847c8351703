// Shows the first image of a queue, or up to nine with its proposal, and takes a key for them. The
// next image is there at once: the queue is long, and its images are loaded ahead. An answer is sent until the
// page says that it is kept, also after a reload. Text is set, never HTML.
const KEYS = "123456789abcdefghijklmnopqrstuvwxyz"
const AGAIN_AFTER = 5000 // milliseconds without an answer of the server
const ASK_AFTER = 500 // milliseconds until the rest of a queue is asked for
const TYPED_IN = "input, textarea, select, [contenteditable=true], [role=dialog] *"
const MOVED_IN = "[role=tab], [role=radio], [role=slider]" // by the arrow keys
const PREPARED = "The next images are being prepared."
const NONE = "No image waits for a label."
const LEAVE_OUT = "Click an image to leave it out."
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
    this.shown = [] // images
    this.left = new Set() // ids of images on show that the next answer leaves out
    this.rest = [] // images that follow
    this.history = [] // [images that were answered at once], to be undone
    this.elements = new Map() // id -> its <img>
    this.others.append(
      this.button("→", "Skip", () => this.answer("skip")),
      this.button("0", "None of these", () => this.answer("none")),
      (this.back = this.button("⌫", "Undo", () => this.undo())),
      (this.alike = this.button("", "More like this", () => this.like(this.chosen[0].id))),
    )
    this.onkey = event => this.key(event)
    window.addEventListener("keydown", this.onkey, true)
    this.clock = setInterval(() => this.pump(), 1000)
  }

  update({ data, setStateValue, setTriggerValue }) {
    const first = !this.data
    const { order, most } = this.data ?? data
    const reset = data.order !== order || data.most !== most
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

  // The images on show stay. The others follow in the order of the server; those that it does not
  // send any more come last, without a proposal: theirs is of an earlier fit.
  take(images, reset) {
    const answered = new Set()
    for (const { action, path } of this.unkept)
      action === "undo" ? answered.delete(path) : answered.add(path)
    if (reset) this.shown = []
    const shown = new Set(this.shown.map(image => image.id))
    const fresh = images.filter(image => !answered.has(image.id) && !shown.has(image.id))
    const ids = new Set(fresh.map(image => image.id))
    const held = reset ? [] : this.rest.filter(image => !ids.has(image.id))
    const unproposed = held.map(image => ({ ...image, proposal: "", note: "" }))
    this.rest = [...fresh, ...unproposed].slice(0, MOST_HELD)
    if (!this.shown.length) this.turn()
    const wanted = [...this.shown, ...this.rest, ...this.history.flat()]
    const before = this.elements
    this.elements = new Map(wanted.map(image => [image.id, this.load(image, before.get(image.id))]))
  }

  // Show the images that follow: several only if they share the proposal, so that one key can be
  // right for all of them. Images without one form a group.
  turn() {
    const { proposal } = this.rest[0] ?? {}
    const alike = this.rest.filter(image => image.proposal === proposal)
    this.shown = alike.slice(0, this.data.most)
    this.rest = this.rest.filter(image => !this.shown.includes(image))
    this.left.clear()
  }

  get chosen() {
    return this.shown.filter(image => !this.left.has(image.id))
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

  isLoaded(image) {
    return this.elements.get(image.id).naturalWidth > 0
  }

  // Answer the chosen images. Those that were left out stay, and are chosen then.
  answer(action, label = "") {
    // nobody has seen what is not loaded
    const images = this.chosen.filter(image => action === "skip" || this.isLoaded(image))
    if (!images.length) return
    this.history = [...this.history, images].slice(-MOST_UNDONE)
    this.shown = this.shown.filter(image => !images.includes(image))
    this.left.clear()
    if (!this.shown.length) this.turn()
    this.give(images, { action, label })
  }

  undo() {
    const images = this.history.pop()
    if (!images) return
    const ids = new Set(images.map(image => image.id))
    this.rest = [...this.shown, ...this.rest].filter(image => !ids.has(image.id))
    this.shown = images
    this.left.clear()
    this.give(images, { action: "undo", label: "" })
  }

  give(images, answer) {
    for (const { id } of images)
      this.unkept.push({ ...answer, path: id, number: ++this.count })
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
    const { chosen, shown } = this
    const { classes, most, more } = this.data
    this.picture.classList.toggle("many", most > 1)
    this.drawImages()
    const broken = chosen.some(image => this.isBroken(image))
    if (broken) this.proposal.textContent = "An image could not be loaded: skip it."
    else if (!shown.length) this.proposal.textContent = more ? PREPARED : NONE
    else if (most > 1) this.proposal.textContent = `${chosen.length} of ${shown.length} chosen. ${LEAVE_OUT}`
    else this.proposal.textContent = shown[0].note
    const proposals = new Set(chosen.map(image => image.proposal))
    const buttons = [...this.classes.children]
    buttons.forEach((one, at) =>
      one.classList.toggle("first", proposals.size === 1 && proposals.has(classes[at])),
    )
    for (const button of [...buttons, ...this.others.children]) button.disabled = !chosen.length
    this.alike.disabled = chosen.length !== 1
    this.back.disabled = !this.history.length
    const waiting = this.unkept.length
    this.state.textContent = waiting > 3 ? `Saving ${waiting} answers …` : ""
  }

  isBroken(image) {
    const element = this.elements.get(image.id)
    return element.complete && !element.naturalWidth
  }

  // Elements of images that stay are left where they are: one that moves would lose the focus.
  drawImages() {
    const many = this.data.most > 1
    const wanted = this.shown.map(image => (many ? this.tile(image) : this.elements.get(image.id)))
    const before = [...this.picture.children]
    if (wanted.length !== before.length || wanted.some((one, at) => one !== before[at]))
      this.picture.replaceChildren(...wanted)
  }

  // A button with one of several images, which chooses it or leaves it out.
  tile(image) {
    const element = this.elements.get(image.id)
    let made = element.parentElement
    if (!made?.matches(".tile")) {
      made = this.button("", "", () => this.toggle(image))
      made.className = "tile"
      made.prepend(element)
    }
    made.lastChild.textContent = image.proposal
    made.title = image.note
    made.setAttribute("aria-pressed", String(!this.left.has(image.id)))
    return made
  }

  toggle({ id }) {
    if (!this.left.delete(id)) this.left.add(id)
    this.draw()
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
