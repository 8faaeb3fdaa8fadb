"""The report as a reader opens it: in Chromium, without a server, on a screen and on a phone."""

import shutil
import time

import pytest
from simulated_study import simulated_probes, simulated_study

from experiments.command import exit_code
from experiments.counting import curves
from experiments.counting.orders import random_order
from experiments.report import __main__ as command

PNG = b'\x89PNG\r\n\x1a\n'
WAIT = 60  # seconds until a test fails; a loaded machine needs a few to draw the charts


@pytest.fixture(scope='module')
def study():
    return simulated_study(examples=400)


@pytest.fixture(scope='module')
def folder(study, tmp_path_factory):
    results = tmp_path_factory.mktemp('results')
    folder = results / study.grid.name / 'report'
    folder.mkdir(parents=True)
    simulated_probes(study).write(folder / 'probes.json')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, 'read_study', lambda *args, **kwargs: study)
        assert exit_code(command.main, [f'--grid={study.grid.name}', f'--results={results}']) == 0
    return folder


@pytest.fixture(scope='module')
def browser():
    """Chromium without a window. A machine without it fails the test, so that nobody believes the page was opened."""
    chromium, driver = shutil.which('chromium'), shutil.which('chromedriver')
    if not (chromium and driver):
        pytest.fail('this test needs Chromium and its driver: apt-get install chromium chromium-driver')
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ('--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage'):
        options.add_argument(flag)
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


def opened(browser, folder, width: int):
    """The page in a window of `width` pixels, after all charts are drawn. No request may leave the machine."""
    browser.execute_cdp_cmd('Network.enable', {})
    browser.execute_cdp_cmd('Network.setBlockedURLs', {'urls': ['http://*', 'https://*']})
    metrics = {'width': width, 'height': 900, 'deviceScaleFactor': 1, 'mobile': width < 600}
    browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', metrics)
    browser.get((folder / 'report.html').as_uri())
    charts = len(browser.find_elements('css selector', '.chart'))
    assert charts == 5
    wait_for(lambda: len(browser.find_elements('css selector', '.chart svg.marks')) == charts)
    return browser


def wait_for(condition) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end, 'the page did not get there'


def choose(browser, control: str, index: int) -> None:
    """Moves a slider, as a reader does."""
    script = 'const slider = document.getElementById(arguments[0]); slider.value = arguments[1];'
    browser.execute_script(script + 'slider.dispatchEvent(new Event("input"))', control, index)


@pytest.mark.slow
@pytest.mark.parametrize('width', [1280, 390])
def test_the_page_opens_without_errors_and_fits_the_screen(browser, folder, width):
    page = opened(browser, folder, width)
    assert [entry for entry in page.get_log('browser') if entry['level'] != 'INFO'] == []
    assert page.execute_script('return document.documentElement.scrollWidth') <= width
    for chart in page.find_elements('css selector', '.chart svg.marks'):
        assert 0.7 * min(width, 896) < chart.size['width'] <= width
    text = page.find_element('css selector', '.headline').text
    assert 'one fixed mask per channel changes accuracy by' in text and 'pre-registered' in text


@pytest.mark.slow
def test_the_sliders_show_the_numbers_of_experiments_counting(browser, folder, study):
    page = opened(browser, folder, 1280)
    correct = study.arms['no_noise'][0].correct
    shown = lambda way: page.find_element('id', f'best-{way}').text
    smoothed = {}
    for size_index, size, order_index, order in ((1, 10, 0, None), (2, 16, 0, None), (2, 16, 4, 3)):
        choose(page, 'batch-size', size_index)
        choose(page, 'order', order_index)
        assert page.find_element('id', 'batch-size-shown').text == str(size)
        ordered = correct if order is None else correct[:, random_order(correct.shape[1], order)]
        for name, curve in curves.recount(ordered, size).items():
            assert shown(curves.label_of(name).replace(' ', '-')) == f'{curve.max():.2f}'
        smoothed[size, order] = shown('smoothed')
    assert len(set(smoothed.values())) == 3  # the sliders do change what is shown
    assert page.find_element('id', 'order-shown').text == 'random 3'


@pytest.mark.slow
def test_the_sliders_redraw_the_chart(browser, folder):
    page = opened(browser, folder, 1280)
    lines = lambda: [
        path.get_attribute('d') for path in page.find_elements('css selector', '#chart-counting .mark-line path')
    ]
    before = lines()
    assert len(before) == 4
    choose(page, 'batch-size', 5)
    wait_for(lambda: lines() != before)


@pytest.mark.slow
def test_plots_are_files_too(folder):
    for name in ('forest', 'probes', 'position', 'counting', 'learning'):
        assert (folder / f'{name}.png').read_bytes().startswith(PNG)
