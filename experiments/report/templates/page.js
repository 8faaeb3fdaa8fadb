// Draws the charts, and lets the reader choose how a run is counted. Every number was computed by Python.
const contents = JSON.parse(document.getElementById('contents').textContent);
const options = {actions: {export: true, source: false, compiled: false, editor: false}, renderer: 'svg'};
const drawn = {};

for (const [name, spec] of Object.entries(contents.charts)) {
  drawn[name] = vegaEmbed(document.getElementById(`chart-${name}`), spec, options);
}

function showCounting() {
  const counted = contents.counted;
  const size = Number(document.getElementById('batch-size').value);
  const order = Number(document.getElementById('order').value);
  for (const [id, text] of [['batch-size', counted.batch_sizes[size]], ['order', counted.orders[order]]]) {
    document.getElementById(`${id}-shown`).textContent = text;
    document.getElementById(id).setAttribute('aria-valuetext', text);
  }
  const ways = counted.curves[size][order];
  const rows = Object.entries(ways).reverse().flatMap(([way, curve]) =>
    curve.map((accuracy, index) => ({counted: way, epoch: index + 1, accuracy})));
  for (const [way, text] of Object.entries(counted.best[size][order])) {
    document.getElementById(`best-${way.replace(' ', '-')}`).textContent = text;
  }
  drawn.counting.then(({view}) => view.data('counted', rows).run());
}

if (contents.counted) {
  document.getElementById('batch-size').addEventListener('input', showCounting);
  document.getElementById('order').addEventListener('input', showCounting);
  showCounting();
}
