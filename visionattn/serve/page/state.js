// What the page shows. `changed` is called with the parts that must be drawn again.

export const state = {
  models: [],
  names: [], // of the models shown, one or two
  pictures: [], // { name, file, bitmap, width, height, results }
  current: null,
  threshold: 0.3,
  opacity: 0.5,
  layers: new Map(), // kind: shown or not, as chosen by the user
  hidden: new Map(), // name of the model: labels of the classes not shown
  options: {}, // of the prediction
  active: null, // { name, found }: the detection that is marked
  attending: false,
  cursor: null, // position of the keyboard in pixels of the picture, while attending
};

export const LOWEST = 0.05; // the score threshold of requests: the slider moves above it

export const at = id => document.getElementById(id);

export const modelOf = name => state.models.find(model => model.name === name);

export const hiddenOf = name => state.hidden.get(name) ?? state.hidden.set(name, new Set()).get(name);

/** Return the result of a model for a picture with the current options, or undefined. */
export const resultOf = (picture, name) => picture?.results.get(resultKey(name));

/** Return the options of the current prediction that a model supports. */
export const optionsFor = name =>
  Object.fromEntries(Object.entries(state.options).filter(([key]) => modelOf(name).options.includes(key)));

export const resultKey = name => name + JSON.stringify(optionsFor(name));

/** Create an element with properties, and children. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-") || key === "role") made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children);
  return made;
}

export const countOf = (count, noun, plural = `${noun}s`) => `${count} ${count === 1 ? noun : plural}`;

export const css = color => `rgb(${color[0]} ${color[1]} ${color[2]})`;
