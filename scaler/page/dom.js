// The document: elements from text, never from HTML, and lists that keep their elements while their content changes.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** An element with attributes and children; text is text, whatever it says. */
export function element(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/** The same for drawings. */
export function drawn(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) set(node, name, value);
  node.append(...children);
  return node;
}

/** Sets an attribute, or takes it away if the value is null; touches nothing that is as it should be. */
export function set(node, name, value) {
  if (value === null || value === undefined || value === false) {
    if (node.hasAttribute(name)) node.removeAttribute(name);
  } else if (node.getAttribute(name) !== String(value)) {
    node.setAttribute(name, value);
  }
}

/** Sets the text of an element, if it is another. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Sets a style property, if it is another. Styles by script are allowed by the page's policy, those in attributes are not. */
export function style(node, name, value) {
  if (node.style.getPropertyValue(name) !== value) node.style.setProperty(name, value);
}

/**
 * Makes the children of `list` those of `items`, in their order. A child is made once for each key, shown anew by `update`, and
 * removed with its item, so that focus and selection stay where they are.
 */
export function keep(list, items, key, create, update) {
  const known = new Map([...list.children].map((child) => [child.dataset.key, child]));
  let place = list.firstElementChild;
  for (const item of items) {
    const id = key(item);
    let child = known.get(id);
    if (child) {
      known.delete(id);
    } else {
      child = create(item);
      child.dataset.key = id;
    }
    update(child, item);
    if (child === place) place = place.nextElementSibling;
    else list.insertBefore(child, place);
  }
  for (const gone of known.values()) gone.remove();
}
