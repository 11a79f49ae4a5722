// Stars of several sizes before a nebula.
void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = placed(at, 1.0, 2.5);
    vec3 sum = pow(fbm(p), 2.0) * ink(0) * 1.2 + pow(fbm(1.7 * p + 9.0), 3.0) * ink(1) * 1.5;
    for (int layer = 0; layer < 3; layer++) {
        vec2 q = p * (1.0 + 0.8 * float(layer)) + 13.0 * float(layer), cell = floor(q);
        vec2 f = q - cell - 0.2 - 0.6 * dice2(cell);
        float size = 0.02 * pow(dice(cell + 40.0), 3.0) + 0.004, flicker = 0.7
            + 0.3 * sin(3.0 * iTime + TAU * dice(cell + 3.0));
        float beam = size * 0.3 / (abs(f.x * f.y) + 0.02) * exp(-7.0 * length(f));
        sum += mix(vec3(1), dice3(cell + 60.0), 0.6) * flicker * (size / (dot(f, f) + 0.004) + beam);
    }
    colour = vec4(sum, 1);
}
