// Signs of a few straight strokes, in rows or alone.
void mainImage(out vec4 colour, in vec2 at) {
    float zoom = 0.6 * float(count(0, 1, 3)) + 0.3;
    vec2 p = turn(0.6 * (random(1) - 0.5)) * centred(at) * zoom + 0.5 + vec2(0.3, 0.2) * iTime, cell = floor(p), f = p - cell;
    float far = 9.0;
    vec2 from = floor(dice2(cell + 50.0) * 3.0) / 2.0;
    for (int k = 0; k < 4; k++) {
        vec2 to = floor(dice2(cell + vec2(97, 31) * float(k + 2)) * 3.0) / 2.0;
        far = min(far, segment(f, 0.2 + 0.6 * from, 0.2 + 0.6 * to));
        from = to;
    }
    float stroke = inside(far - between(2, 0.04, 0.09), zoom / 14.0);
    vec3 paper = mix(ink(3), mix(ink(4), palette(noise(p)), 0.5), 0.5 + 0.5 * centred(at).y);
    colour = vec4(mix(paper, ink(5), stroke), 1);
}
